"""Fault models: which cells of a memory fail, and what a faulty cell does to the bit stored in it.

A new model subclasses `FaultModel` (or `IndependentCells`, where each cell fails on its own), says in one method what
fails, and is entered in `FAULT_MODELS`; nothing else changes.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from neuralfuse.errors import ConfigError, check_ber, unknown_name
from neuralfuse.memory.layout import Layout
from neuralfuse.seeds import derive, hash64, poisson_count, poisson_time, signed64, unit_interval


@dataclass(frozen=True)
class FaultyCells:
    """The faulty cells of one chip and what each reads: ``bit -> (bit AND keeps) XOR flips``.

    Stuck at 0 keeps nothing and flips nothing; stuck at 1 flips the 0 it has left; an inverted bit keeps and flips.

    Attributes:
        cell: int64 (k,), sorted, no cell twice; cells as `Layout` counts them.
        keeps: bool (k,).
        flips: bool (k,).
    """

    cell: Tensor
    keeps: Tensor
    flips: Tensor


@dataclass(frozen=True, kw_only=True)
class FaultModel(abc.ABC):
    """What makes cells fail. Together with a seed it is a chip: the same faulty cells for ever.

    Args:
        ber: Rate of faulty cells, a fraction in [0, 1]. Whether a faulty cell changes its bit is the model's matter;
            records report the realised share of changed bits beside it.
    """

    kind: ClassVar[str]
    ber: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "ber", check_ber(self.ber))

    @abc.abstractmethod
    def cells(self, layout: Layout, seed: int, device: torch.device) -> FaultyCells:
        """Return the cells of this layout that are faulty on the chip with this seed."""

    def to_config(self) -> dict[str, Any]:
        """Return the model as JSON, for records."""
        return {"kind": self.kind, **asdict(self)}


class IndependentCells(FaultModel):
    """Each cell fails on its own with probability ``ber``: exactly Bernoulli, at a cost of about cells * ber draws.

    Cells are drawn with replacement at the arrivals of a Poisson process in time = -ln(1 - ber): a cell is hit at
    least once with probability ber. One endless stream of draws belongs to each tensor's name, a rate takes a prefix of
    it, and so the cells faulty at a rate are faulty at every higher one. The stream comes from an integer hash, equal
    on every device.
    """

    @abc.abstractmethod
    def behaviour(self, random: Callable[[str], Tensor], count: int) -> tuple[bool | Tensor, bool | Tensor]:
        """Return (keeps, flips) of the ``count`` faulty cells, as tensors or one bool for all.

        ``random(purpose)`` returns a uniform float64 in [0, 1) for each of the cells, a property of the cell alone.
        """

    def cells(self, layout: Layout, seed: int, device: torch.device) -> FaultyCells:
        """Return the faulty cells; see `FaultModel.cells`."""
        cell = self._hit_cells(layout, seed, device)

        def random(purpose: str) -> Tensor:
            starts = torch.tensor([region.start * layout.bits for region in layout.regions], device=device)
            region = torch.bucketize(cell, starts, right=True) - 1
            keys = [signed64(derive(seed, "chip", purpose, region.name)) for region in layout.regions]
            return unit_interval(hash64(torch.tensor(keys, device=device)[region], cell - starts[region]))

        keeps, flips = self.behaviour(random, len(cell))
        return FaultyCells(cell, _expand(keeps, cell), _expand(flips, cell))

    def _hit_cells(self, layout: Layout, seed: int, device: torch.device) -> Tensor:
        if self.ber == 1:
            return torch.arange(layout.cells, device=device)
        sizes = [region.words * layout.bits for region in layout.regions]
        seeds = [derive(seed, "chip", "cells", region.name) for region in layout.regions]
        time = poisson_time(self.ber)
        counts = torch.tensor([poisson_count(n, time, key) for n, key in zip(sizes, seeds, strict=True)], device=device)
        total = int(counts.sum())

        def each_draw(values: list[int]) -> Tensor:
            return torch.repeat_interleave(torch.tensor(values, device=device), counts, output_size=total)

        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts, output_size=total)
        draw = torch.arange(total, device=device).sub_(first)
        place = unit_interval(hash64(each_draw([signed64(key) for key in seeds]), draw)).mul_(each_draw(sizes))
        starts = each_draw([region.start * layout.bits for region in layout.regions])
        hit: Tensor = torch.unique(place.long().add_(starts))
        return hit


def _expand(value: bool | Tensor, cell: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(cell, value, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Flip(IndependentCells):
    """Each stored bit is inverted with probability ``ber``, independently.

    Source:
        Stutz et al., Bit Error Robustness for Energy-Efficient DNN Accelerators (MLSys 2021), section 3.
    """

    kind: ClassVar[str] = "flip"

    def behaviour(self, random: Callable[[str], Tensor], count: int) -> tuple[bool, bool]:
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

    def behaviour(self, random: Callable[[str], Tensor], count: int) -> tuple[bool, Tensor]:
        """Give each faulty cell its polarity for ever."""
        return False, random("polarity") < self.stuck_at_1


FAULT_MODELS: dict[str, type[FaultModel]] = {"flip": Flip, "stuck": Stuck}


def fault_model(kind: str, *, ber: float, **options: Any) -> FaultModel:
    """Return the fault model of this name.

    Args:
        kind: A key of `FAULT_MODELS`.
        ber: Rate of faulty cells, a fraction in [0, 1].
        options: Further fields of the model, for instance ``stuck_at_1``.
    Raises:
        UnknownNameError: no model is called ``kind``.
        ConfigError: the model has no such option.
        RateError: ``ber`` is not in [0, 1].
    """
    if kind not in FAULT_MODELS:
        raise unknown_name("fault model", kind, FAULT_MODELS)
    model = FAULT_MODELS[kind]
    legal = [field.name for field in fields(model)]
    for option in options:
        if option not in legal:
            raise ConfigError(f"faults {kind!r} must be given options out of {', '.join(legal)}: got {option!r}.")
    return model(ber=ber, **options)
