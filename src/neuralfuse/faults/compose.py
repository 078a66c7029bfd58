"""Fault models made of others: one chip alone, several at once, fresh at every read, or at some bit positions only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import ClassVar, Self

import torch

from neuralfuse.errors import check_ber, require
from neuralfuse.faults.arrays import Array, WordLayout
from neuralfuse.faults.base import FAULT_MODELS, FaultModel, chance, part_seed
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.layout import Layout
from neuralfuse.faults.voltage import VoltageCurve
from neuralfuse.seeds import poisson_time


@dataclass(frozen=True, kw_only=True)
class Wrapped(FaultModel):
    """Another fault model with one thing changed. A subclass says what; everything else is the inner model's.

    Args:
        faults: The inner model; ``ber`` is its rate.
    """

    ber: float = field(init=False)
    faults: FaultModel

    def __post_init__(self) -> None:
        inner = isinstance(self.faults, FaultModel)
        require(inner, f"faults of {self.kind!r} must be a fault model: got {self.faults!r}.")
        object.__setattr__(self, "ber", self.faults.ber)

    def at(self, ber: float) -> Self:
        """Return the same around the inner model at another rate."""
        return replace(self, faults=self.faults.at(ber))

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> Self:
        """Return the same around the inner model at a supply voltage."""
        return replace(self, faults=self.faults.at_voltage(voltage, curve))

    def on_array(self, array: Array, mapping: WordLayout) -> Self:
        """Return the same around the inner model on this array."""
        return replace(self, faults=self.faults.on_array(array, mapping))

    @property
    def cell_rate(self) -> float:
        """The inner model's."""
        return self.faults.cell_rate

    @property
    def has_map(self) -> bool:
        """Whether the inner model has one."""
        return self.faults.has_map

    @property
    def permanent(self) -> FaultModel | None:
        """The same around the inner model's permanent part."""
        kept = self.faults.permanent
        if kept is self.faults:
            return self
        return None if kept is None else replace(self, faults=kept)


@dataclass(frozen=True, kw_only=True)
class OneChip(Wrapped):
    """One chip of another fault model, whatever seed is asked for. What is trained for it is trained for it alone.

    Args:
        faults: The other model.
        seed: Seed of the chip.
    """

    kind: ClassVar[str] = "one-chip"
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool) and self.seed >= 0
        require(whole, f"seed must be a whole number of at least 0: got seed={self.seed!r}.")

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the chip's faulty cells; see `FaultModel.cells`."""
        return self.faults.cells(layout, self.seed, device, read=read)

    @property
    def one_chip(self) -> bool:
        """Every seed is this chip."""
        return True


@dataclass(frozen=True, kw_only=True)
class Combined(FaultModel):
    """Several kinds of faults in one memory. A later part acts on what the earlier ones read.

    ``ber`` is the share of cells that at least one part makes faulty: 1 - product of (1 - cell rate of the part). At
    another rate, the times -ln(1 - rate) of all parts keep their proportions, so a cell faulty at a rate is faulty at
    any higher one. What the cell reads may change where parts meet: two inversions cancel. Each part draws from a seed
    of its own, so parts of one kind hit different cells.

    Args:
        parts: The fault models, in the order in which they act.
    """

    kind: ClassVar[str] = "combined"
    ber: float = field(init=False)
    parts: tuple[FaultModel, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        require(len(self.parts) > 0, "faults 'combined' must have at least one part: got none.")
        for part in self.parts:
            require(isinstance(part, FaultModel), f"parts must be fault models: got {part!r}.")
        object.__setattr__(self, "ber", 1 - math.prod(1 - part.cell_rate for part in self.parts))

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells; see `FaultModel.cells`. The first part has the cells that it has alone."""
        level = _level(self)
        seeds = [seed, *(part_seed(seed, "part", level, place) for place in range(1, len(self.parts)))]
        cells = [
            part.cells(layout, own, device, read=read) for part, own in zip(self.parts, seeds, strict=True)
        ]  # fmt: skip
        return reduce(FaultyCells.then, cells)

    def at(self, ber: float) -> Self:
        """Return the same mixture at another rate."""
        check_ber(ber)
        if ber == 0:
            return replace(self, parts=tuple(part.at(0) for part in self.parts))
        require(0 < self.ber < 1 and ber < 1, f"a mixture must have rates inside (0, 1): got {self.ber} and {ber}.")
        factor = poisson_time(ber) / poisson_time(self.ber)
        return replace(self, parts=tuple(_grown(part, factor) for part in self.parts))

    @property
    def has_map(self) -> bool:
        """Whether a part has one."""
        return any(part.has_map for part in self.parts)

    @property
    def one_chip(self) -> bool:
        """Whether all parts are one chip at every seed."""
        return all(part.one_chip for part in self.parts)

    def on_array(self, array: Array, mapping: WordLayout) -> Self:
        """Return the same parts on this array."""
        return replace(self, parts=tuple(part.on_array(array, mapping) for part in self.parts))

    @property
    def permanent(self) -> FaultModel | None:
        """All permanent parts. The others stay at rate 0, so that each part keeps its place and its seed."""
        if all(part.permanent is part for part in self.parts):
            return self
        kept = tuple(part.permanent or part.at(0) for part in self.parts)
        return None if all(part.permanent is None for part in self.parts) else replace(self, parts=kept)


def _level(model: FaultModel) -> int:
    """Return how many mixtures share a seed, each the first part of the next; each draws under a name of its own."""
    if isinstance(model, Combined):
        return 1 + _level(model.parts[0])
    return _level(model.faults) if isinstance(model, BitRates | Transient) else 0


def _grown(part: FaultModel, factor: float) -> FaultModel:
    """Return a part after ``factor`` times its time: its cell rate is proportional to its ``ber``."""
    if part.cell_rate == 0:
        return part
    return part.at(part.ber * -math.expm1(-factor * poisson_time(part.cell_rate)) / part.cell_rate)


@dataclass(frozen=True, kw_only=True)
class Transient(Wrapped):
    """Errors that are fresh at every read of the memory. One read is one forward pass.

    Args:
        faults: The errors at one read.
    """

    kind: ClassVar[str] = "transient"

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the cells that fail at this read."""
        return self.faults.cells(layout, part_seed(seed, "read", read), device)

    @property
    def permanent(self) -> None:
        """None: a memory test cannot find these errors."""
        return


@dataclass(frozen=True, kw_only=True)
class BitRates(Wrapped):
    """Other faults, with a rate of its own for each bit position of a word.

    A faulty cell at position j stays faulty with probability ``shares[j]``, so the rate there is ber * shares[j]. A
    share of 0 is a protected (hardened) bit. A single 1 among zeros puts errors at one position only, as the reference
    code offers.

    Args:
        faults: The faults without protection.
        shares: One number in [0, 1] per bit, the least significant bit first.
    """

    kind: ClassVar[str] = "bit-rates"
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = tuple(check_ber(share, "share of a bit") for share in self.shares)
        if isinstance(self.faults, BitRates):  # nested shares multiply
            require(len(shares) == len(self.faults.shares), "nested shares must be of one width: got two.")
            shares = tuple(one * other for one, other in zip(shares, self.faults.shares, strict=True))
            object.__setattr__(self, "faults", self.faults.faults)
        require(len(shares) > 0, "shares must be one per bit: got none.")
        object.__setattr__(self, "shares", shares)

    @classmethod
    def protecting(cls, faults: FaultModel, *, msbs: int, bits: int = 8) -> BitRates:
        """Harden the ``msbs`` most significant bits of words of this width."""
        require(0 <= msbs <= bits, f"protected bits must be in 0..{bits}: got {msbs}.")
        return cls(faults=faults, shares=(1.0,) * (bits - msbs) + (0.0,) * msbs)

    @classmethod
    def only(cls, faults: FaultModel, *, bit: int, bits: int = 8) -> BitRates:
        """Let faults occur at one bit position only; 0 is the least significant."""
        require(0 <= bit < bits, f"bit must be in 0..{bits - 1}: got {bit}.")
        return cls(faults=faults, shares=tuple(float(place == bit) for place in range(bits)))

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells that are left."""
        bits = layout.bits
        require(len(self.shares) == bits, f"shares must be one per bit, {bits} of them here: got {len(self.shares)}.")
        every = self.faults.cells(layout, seed, device, read=read)
        share = torch.tensor(self.shares, dtype=torch.float64, device=device)[every.cell % bits]
        key = part_seed(seed, "read", read) if self.faults.permanent is None else seed
        return every[chance(layout, key, "bit position", every.cell, share)]

    @property
    def cell_rate(self) -> float:
        """The mean over the bit positions."""
        return self.faults.cell_rate * math.fsum(self.shares) / len(self.shares)

    @property
    def one_chip(self) -> bool:
        """Whether all seeds are one chip: no share is drawn."""
        return self.faults.one_chip and set(self.shares) <= {0.0, 1.0}


for _model in (OneChip, Combined, Transient, BitRates):
    FAULT_MODELS[_model.kind] = _model
