"""Independent faults: each cell fails on its own."""

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
    bernoulli,
    bernoulli_of,
    derive,
    hash64,
    poisson_count,
    poisson_time,
    scaled_integers,
    signed64,
    uniform_integers,
)

Chance = Callable[[str, float], Tensor]


class IndependentCells(FaultModel):
    """Cells that fail independently, each with probability `cell_rate`.

    The faults are exactly Bernoulli, for about cells * rate draws. Cells are drawn with replacement at the arrivals of
    a Poisson process up to time -ln(1 - rate). Each cell is then hit at least once with probability ``rate``.

    Each tensor's name has one endless stream of draws, and a rate takes a prefix of it. So the cells that are faulty at
    a rate are faulty at every higher rate. The stream comes from an integer hash and is the same on every device.
    """

    @abc.abstractmethod
    def behaviour(self, has: Chance) -> tuple[bool | Tensor, bool | Tensor]:
        """Return (keeps, flips) of the faulty cells, as tensors or one bool for all.

        ``has(purpose, probability)`` returns whether each cell has a random property, True with this probability.
        For one purpose, a cell that has the property at a probability has it at every higher one.
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
        """Return the same cells, drawn for all tensors together. An accelerator is slow at many small operations."""
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
            cell = torch.unique(scaled_integers(bits, spans[own]) + starts[own])
        own = torch.searchsorted(starts, cell, right=True) - 1
        local = cell - starts[own]
        keeps, flips = self.behaviour(lambda purpose, chance: bernoulli_of(hash64(keys(purpose)[own], local), chance))
        like = torch.ones_like(cell, dtype=torch.bool)
        return FaultyCells(
            cell, like & torch.as_tensor(keeps, device=device), like & torch.as_tensor(flips, device=device)
        )


def _properties(seed: int, name: str, cell: Tensor) -> Chance:
    return lambda purpose, probability: bernoulli(derive(seed, "chip", purpose, name), cell, probability)


def sample_hits(size: int, rate: float, key: int, device: torch.device) -> Tensor:
    """Draw which of ``size`` items are hit, each with probability ``rate``: int64, sorted, none twice.

    For one key and size, the items hit at a rate are hit at every higher rate.
    """
    return distinct(_draws(size, rate, key, device)).long()


def _draws(size: int, rate: float, key: int, device: torch.device) -> Tensor:
    if rate == 1:
        return torch.arange(size, device=device)
    return uniform_integers(key, poisson_count(size, poisson_time(rate), key), size, device)


def _all_distinct(drawn: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return the distinct draws of each tensor, sorted. Many draws are sorted in several threads."""
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
    """Stuck-at faults: each cell is stuck at 0 or 1 with probability ``ber``, independently.

    About half of the faulty cells change a bit. "BER" has this meaning in the tables of the NeuralFuse paper. The paper
    uses one repeated map (`Reference`) instead of independent cells.

    Args:
        stuck_at_1: Share of the faulty cells that read 1.
    Source:
        NeuralFuse (arXiv 2306.16869), according to its public code.
    """

    kind: ClassVar[str] = "stuck"
    stuck_at_1: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stuck_at_1", check_ber(self.stuck_at_1, "stuck_at_1"))

    def behaviour(self, has: Chance) -> tuple[bool, Tensor]:
        """Give each faulty cell a fixed polarity."""
        return False, has("polarity", self.stuck_at_1)


@dataclass(frozen=True, kw_only=True)
class Asymmetric(IndependentCells):
    """Bit flips whose probability depends on the stored bit, independent from cell to cell.

    P(0 -> 1) = 2 * ber * zero_to_one and P(1 -> 0) = 2 * ber * (1 - zero_to_one). If half of the stored bits are 1, a
    share ``ber`` of all bits flips. With ``zero_to_one=0.5`` this is `Flip`.

    Args:
        zero_to_one: Share of 0 -> 1 among the flips, if half of the stored bits are 1.
    Raises:
        ConfigError: the probability of one direction would exceed 1.
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
            f"ber must be at most {most:g} for zero_to_one={share:g}: got ber={self.ber:g}. Otherwise the probability "
            "of one direction would exceed 1.",
        )

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> Self:
        """Return the model at a voltage. The curve's rate is the share of cells that fail in at least one direction."""
        return self.at(curve.ber(voltage) / (2 * max(self.zero_to_one, 1 - self.zero_to_one)))

    @property
    def cell_rate(self) -> float:
        """Probability that a cell fails in at least one direction. Cells of the rarer direction fail in both."""
        return min(1.0, 2 * self.ber * max(self.zero_to_one, 1 - self.zero_to_one))

    def behaviour(self, has: Chance) -> tuple[Tensor, Tensor]:
        """Let every faulty cell fail in the more frequent direction, and some in the other direction too."""
        more = max(self.zero_to_one, 1 - self.zero_to_one)
        fails_0 = has("direction", self.zero_to_one / more)
        fails_1 = has("direction", (1 - self.zero_to_one) / more)
        return fails_0 == fails_1, fails_0


for _model in (Flip, Stuck, Asymmetric):
    FAULT_MODELS[_model.kind] = _model
