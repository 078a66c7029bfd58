"""Faults of single cells, each failing on its own."""

from __future__ import annotations

import abc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Self

import torch
from torch import Tensor

from neuralfuse.errors import check_ber, require
from neuralfuse.faults.base import FAULT_MODELS, FaultModel
from neuralfuse.faults.behaviour import FaultyCells, distinct, empty_fast
from neuralfuse.faults.layout import Layout
from neuralfuse.faults.voltage import VoltageCurve
from neuralfuse.seeds import (
    below,
    derive,
    happens,
    hash64,
    poisson_count,
    poisson_time,
    scaled,
    signed64,
    uniform_integers,
)

Chance = Callable[[str, float], Tensor]


class IndependentCells(FaultModel):
    """Each cell fails on its own with probability `cell_rate`: exactly Bernoulli, for about cells * rate draws.

    Cells are drawn with replacement at the arrivals of a Poisson process in time = -ln(1 - rate): a cell is hit at
    least once with probability ``rate``. One endless stream of draws belongs to each tensor's name, a rate takes a
    prefix of it, and so the cells faulty at a rate are faulty at every higher one. The stream comes from an integer
    hash, equal on every device.
    """

    @abc.abstractmethod
    def behaviour(self, has: Chance) -> tuple[bool | Tensor, bool | Tensor]:
        """Return (keeps, flips) of the faulty cells, as tensors or one bool for all.

        ``has(purpose, probability)`` says of each cell whether it has a property that cells have with this
        probability; with one purpose, the cells that have it at a probability have it at every higher one.
        """

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells; see `FaultModel.cells`."""
        if device.type != "cpu":
            return self.all_at_once(layout, seed, device)
        sizes = [region.words * layout.bits for region in layout.regions]
        keys = [derive(seed, "chip", "cells", region.name) for region in layout.regions]
        drawn = [_draws(size, self.cell_rate, key, device) for size, key in zip(sizes, keys, strict=True)]
        found = _all_distinct(drawn, device)
        count = sum(map(len, found))
        every = FaultyCells(*(empty_fast(count, dtype, device) for dtype in (torch.int64, torch.bool, torch.bool)))
        first = 0
        for region, cell in zip(layout.regions, found, strict=True):
            own = every[first : first + len(cell)]
            keeps, flips = self.behaviour(_properties(seed, region.name, cell))
            own.cell.copy_(cell).add_(region.start * layout.bits)
            own.keeps.copy_(torch.as_tensor(keeps))
            own.flips.copy_(torch.as_tensor(flips))
            first += len(cell)
        return every

    def all_at_once(self, layout: Layout, seed: int, device: torch.device) -> FaultyCells:
        """Return the same cells, drawn for all tensors together: on an accelerator, many small operations are slow."""
        names = [region.name for region in layout.regions]
        sizes = [region.words * layout.bits for region in layout.regions]
        starts = torch.tensor([region.start * layout.bits for region in layout.regions], device=device)

        def keys(purpose: str) -> Tensor:
            return torch.tensor([signed64(derive(seed, "chip", purpose, name)) for name in names], device=device)

        if self.cell_rate == 1:
            cell = torch.cat(
                [torch.arange(size, device=device) + start for size, start in zip(sizes, starts, strict=True)]
            )
        else:
            time = poisson_time(self.cell_rate)
            counts = [
                poisson_count(size, time, derive(seed, "chip", "cells", name))
                for size, name in zip(sizes, names, strict=True)
            ]
            own = torch.arange(len(names), device=device).repeat_interleave(
                torch.tensor(counts, device=device), output_size=sum(counts)
            )
            first = torch.tensor([0, *accumulate(counts)][:-1], device=device)
            bits = hash64(keys("cells")[own], torch.arange(sum(counts), device=device) - first[own])
            spans = torch.tensor(sizes, dtype=torch.float64, device=device)
            cell = torch.unique(scaled(bits, spans[own]) + starts[own])
        own = torch.searchsorted(starts, cell, right=True) - 1
        local = cell - starts[own]
        keeps, flips = self.behaviour(lambda purpose, chance: below(hash64(keys(purpose)[own], local), chance))
        like = torch.ones_like(cell, dtype=torch.bool)
        return FaultyCells(
            cell, like & torch.as_tensor(keeps, device=device), like & torch.as_tensor(flips, device=device)
        )


def _properties(seed: int, name: str, cell: Tensor) -> Chance:
    return lambda purpose, probability: happens(derive(seed, "chip", purpose, name), cell, probability)


def hits(size: int, rate: float, key: int, device: torch.device) -> Tensor:
    """Return which of ``size`` things are hit, each with probability ``rate``: int64, sorted, none twice.

    Those hit at a rate are hit at every higher one, for the same key and size.
    """
    return distinct(_draws(size, rate, key, device)).long()


def _draws(size: int, rate: float, key: int, device: torch.device) -> Tensor:
    if rate == 1:
        return torch.arange(size, device=device)
    return uniform_integers(key, poisson_count(size, poisson_time(rate), key), size, device)


def _all_distinct(drawn: list[Tensor], device: torch.device) -> list[Tensor]:
    """Sort several tensors' draws, in as many threads as torch uses where that is worth it."""
    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu" or sum(map(len, drawn)) < 1 << 17:
        return [distinct(one) for one in drawn]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(distinct, drawn))


@dataclass(frozen=True, kw_only=True)
class Flip(IndependentCells):
    """Each stored bit is inverted with probability ``ber``, independently.

    Source:
        Stutz et al., Bit Error Robustness for Energy-Efficient DNN Accelerators (MLSys 2021), section 3.
    """

    kind: ClassVar[str] = "flip"

    def behaviour(self, has: Chance) -> tuple[bool, bool]:
        """Invert every faulty cell."""
        return True, True


@dataclass(frozen=True, kw_only=True)
class Stuck(IndependentCells):
    """Each cell is faulty with probability ``ber`` and then reads 0 or 1 whatever was written, independently.

    About half of the faulty cells change a bit. This is what "BER" means in the tables of the NeuralFuse paper, with
    independent cells in the place of its repeated map (`Reference`).

    Args:
        stuck_at_1: Share of the faulty cells that read 1.
    Source:
        NeuralFuse (arXiv 2306.16869), by its public code.
    """

    kind: ClassVar[str] = "stuck"
    stuck_at_1: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stuck_at_1", check_ber(self.stuck_at_1, "stuck_at_1"))

    def behaviour(self, has: Chance) -> tuple[bool, Tensor]:
        """Give each faulty cell its polarity for ever."""
        return False, has("polarity", self.stuck_at_1)


@dataclass(frozen=True, kw_only=True)
class Asymmetric(IndependentCells):
    """A stored 0 reads 1 with one probability and a stored 1 reads 0 with another, independently.

    P(0 -> 1) = 2 * ber * zero_to_one and P(1 -> 0) = 2 * ber * (1 - zero_to_one): of balanced bits, ``ber`` change.
    With ``zero_to_one=0.5`` this is `Flip`.

    Args:
        zero_to_one: Share of the 0 -> 1 errors among balanced bits.
    Raises:
        ConfigError: a direction's probability would exceed 1.
    """

    kind: ClassVar[str] = "asymmetric"
    zero_to_one: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        share = check_ber(self.zero_to_one, "zero_to_one")
        object.__setattr__(self, "zero_to_one", share)
        most = 0.5 / max(share, 1 - share)
        require(
            self.ber <= most,
            f"ber must be at most {most:g} where zero_to_one is {share:g}: got ber={self.ber:g}. Of one direction no "
            "more than all bits can change.",
        )

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> Self:
        """Return the model that makes the curve's share of cells weak, each in at least one direction."""
        return self.at(curve.ber(voltage) / (2 * max(self.zero_to_one, 1 - self.zero_to_one)))

    @property
    def cell_rate(self) -> float:
        """Probability that a cell is weak in at least one direction; the rarer one's cells are among the other's."""
        return min(1.0, 2 * self.ber * max(self.zero_to_one, 1 - self.zero_to_one))

    def behaviour(self, has: Chance) -> tuple[Tensor, Tensor]:
        """Let a cell fail in the frequent direction, and some of them in the other one too."""
        more = max(self.zero_to_one, 1 - self.zero_to_one)
        fails_0 = has("direction", self.zero_to_one / more)
        fails_1 = has("direction", (1 - self.zero_to_one) / more)
        return fails_0 == fails_1, fails_0


for _model in (Flip, Stuck, Asymmetric):
    FAULT_MODELS[_model.kind] = _model
