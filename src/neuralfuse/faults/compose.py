"""Fault models made of others: several at once, fresh at every read, or at some bit positions only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import ClassVar, Self

import torch

from neuralfuse.errors import check_ber, require
from neuralfuse.faults.arrays import Array, Mapping
from neuralfuse.faults.base import FAULT_MODELS, FaultModel, FaultyCells, chance, part_seed
from neuralfuse.faults.layout import Layout
from neuralfuse.faults.voltage import VoltageCurve
from neuralfuse.seeds import poisson_time


@dataclass(frozen=True, kw_only=True)
class OneChip(FaultModel):
    """One chip of another fault model, whatever seed is asked for: what is trained for it, is trained for it alone.

    Args:
        faults: The other model.
        seed: Of the chip.
    """

    kind: ClassVar[str] = "one-chip"
    ber: float = field(init=False)
    faults: FaultModel
    seed: int

    def __post_init__(self) -> None:
        _check_inner(self.kind, self.faults)
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool) and self.seed >= 0
        require(whole, f"seed must be a whole number of at least 0: got seed={self.seed!r}.")
        object.__setattr__(self, "ber", self.faults.ber)

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the chip's faulty cells; see `FaultModel.cells`."""
        return self.faults.cells(layout, self.seed, device, read=read)

    def at(self, ber: float) -> Self:
        """Return the same chip at another rate."""
        return replace(self, faults=self.faults.at(ber))

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> Self:
        """Return the same chip at another voltage."""
        return replace(self, faults=self.faults.at_voltage(voltage, curve))

    @property
    def cell_rate(self) -> float:
        """That of the other model."""
        return self.faults.cell_rate

    @property
    def has_map(self) -> bool:
        """Whether the other model has one."""
        return self.faults.has_map

    @property
    def one_chip(self) -> bool:
        """Every seed is this chip."""
        return True

    def on_array(self, array: Array, mapping: Mapping) -> Self:
        """Return the chip with its faults on this array."""
        return replace(self, faults=self.faults.on_array(array, mapping))

    @property
    def permanent(self) -> FaultModel | None:
        """The chip's permanent part."""
        kept = self.faults.permanent
        return None if kept is None else self if kept is self.faults else replace(self, faults=kept)


@dataclass(frozen=True, kw_only=True)
class Combined(FaultModel):
    """Several kinds of faults in one memory; a later part acts on what the earlier ones read.

    ``ber`` is the share of cells that at least one part makes faulty, 1 - product of (1 - cell rate of the part). At
    another rate all parts grow or shrink together: their times -ln(1 - rate) keep their proportions, so a
    cell faulty at a rate is faulty at any higher one; what it reads may change where parts meet, and two inversions
    cancel. Each part draws from a seed of its own, so parts of one kind hit different cells.

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
        """Return the faulty cells; see `FaultModel.cells`. The first part's are those it has alone on this chip."""
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

    def on_array(self, array: Array, mapping: Mapping) -> Self:
        """Return the same parts, on this array."""
        return replace(self, parts=tuple(part.on_array(array, mapping) for part in self.parts))

    @property
    def permanent(self) -> FaultModel | None:
        """All parts that stay; the others are left in at rate 0, so that each part keeps its place and its seed."""
        if all(part.permanent is part for part in self.parts):
            return self
        kept = tuple(part.permanent or part.at(0) for part in self.parts)
        return None if all(part.permanent is None for part in self.parts) else replace(self, parts=kept)


def _level(model: FaultModel) -> int:
    """Return how many mixtures share a seed, one being the first part of the other: each draws in its own name."""
    if isinstance(model, Combined):
        return 1 + _level(model.parts[0])
    return _level(model.faults) if isinstance(model, BitRates | Transient) else 0


def _grown(part: FaultModel, factor: float) -> FaultModel:
    """Return a part after ``factor`` times its time: its cell rate is proportional to its ``ber``."""
    if part.cell_rate == 0:
        return part
    return part.at(part.ber * -math.expm1(-factor * poisson_time(part.cell_rate)) / part.cell_rate)


@dataclass(frozen=True, kw_only=True)
class Transient(FaultModel):
    """Errors that are fresh at every read of the memory: one read is one forward pass.

    Args:
        faults: What errors look like at one read.
    """

    kind: ClassVar[str] = "transient"
    ber: float = field(init=False)
    faults: FaultModel

    def __post_init__(self) -> None:
        _check_inner(self.kind, self.faults)
        object.__setattr__(self, "ber", self.faults.ber)

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the cells that fail at this read."""
        return self.faults.cells(layout, part_seed(seed, "read", read), device)

    def at(self, ber: float) -> Self:
        """Return the same errors at another rate."""
        return replace(self, faults=self.faults.at(ber))

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> Self:
        """Return the same errors at a supply voltage."""
        return replace(self, faults=self.faults.at_voltage(voltage, curve))

    @property
    def has_map(self) -> bool:
        """Whether the errors have one."""
        return self.faults.has_map

    @property
    def cell_rate(self) -> float:
        """That of the errors at one read."""
        return self.faults.cell_rate

    def on_array(self, array: Array, mapping: Mapping) -> Self:
        """Return the same errors, on this array."""
        return replace(self, faults=self.faults.on_array(array, mapping))

    @property
    def permanent(self) -> None:
        """Nothing that a test of the memory could find."""
        return


@dataclass(frozen=True, kw_only=True)
class BitRates(FaultModel):
    """Other faults, with a rate of its own for each bit position of a word.

    A faulty cell at position j stays faulty with probability ``shares[j]``: the rate there is ber * shares[j]. A share
    of 0 is a protected (hardened) bit; a single 1 among zeros puts errors at one position only, as the reference
    offers.

    Args:
        faults: The faults without protection; ``ber`` is theirs.
        shares: One number in [0, 1] a bit, the least significant bit first.
    """

    kind: ClassVar[str] = "bit-rates"
    ber: float = field(init=False)
    faults: FaultModel
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_inner(self.kind, self.faults)
        shares = tuple(check_ber(share, "share of a bit") for share in self.shares)
        if isinstance(self.faults, BitRates):  # one after the other is one with the products
            require(len(shares) == len(self.faults.shares), "nested shares must be of one width: got two.")
            shares = tuple(one * other for one, other in zip(shares, self.faults.shares, strict=True))
            object.__setattr__(self, "faults", self.faults.faults)
        require(len(shares) > 0, "shares must be one a bit: got none.")
        object.__setattr__(self, "shares", shares)
        object.__setattr__(self, "ber", self.faults.ber)

    @classmethod
    def protecting(cls, faults: FaultModel, *, msbs: int, bits: int = 8) -> BitRates:
        """Harden the ``msbs`` most significant bits of words of this width."""
        require(0 <= msbs <= bits, f"protected bits must be in 0..{bits}: got {msbs}.")
        return cls(faults=faults, shares=(1.0,) * (bits - msbs) + (0.0,) * msbs)

    @classmethod
    def only(cls, faults: FaultModel, *, bit: int, bits: int = 8) -> BitRates:
        """Let faults occur at one bit position only, 0 the least significant."""
        require(0 <= bit < bits, f"bit must be in 0..{bits - 1}: got {bit}.")
        return cls(faults=faults, shares=tuple(float(place == bit) for place in range(bits)))

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells that are left."""
        bits = layout.bits
        require(len(self.shares) == bits, f"shares must be one a bit, {bits} of them here: got {len(self.shares)}.")
        every = self.faults.cells(layout, seed, device, read=read)
        share = torch.tensor(self.shares, dtype=torch.float64, device=device)[every.cell % bits]
        key = part_seed(seed, "read", read) if self.faults.permanent is None else seed
        return every[chance(layout, key, "bit position", every.cell, share)]

    @property
    def cell_rate(self) -> float:
        """The mean over the bit positions."""
        return self.faults.cell_rate * math.fsum(self.shares) / len(self.shares)

    @property
    def has_map(self) -> bool:
        """Whether the faults have one."""
        return self.faults.has_map

    @property
    def one_chip(self) -> bool:
        """Whether no seed matters."""
        return self.faults.one_chip and set(self.shares) <= {0.0, 1.0}

    def on_array(self, array: Array, mapping: Mapping) -> Self:
        """Return the same shares of faults on this array."""
        return replace(self, faults=self.faults.on_array(array, mapping))

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> Self:
        """Return the same shares of the faults at a supply voltage."""
        return replace(self, faults=self.faults.at_voltage(voltage, curve))

    def at(self, ber: float) -> Self:
        """Return the same shares of another rate."""
        return replace(self, faults=self.faults.at(ber))

    @property
    def permanent(self) -> FaultModel | None:
        """What stays of the faults."""
        kept = self.faults.permanent
        if kept is self.faults:
            return self
        return None if kept is None else replace(self, faults=kept)


def _check_inner(kind: str, faults: object) -> None:
    require(isinstance(faults, FaultModel), f"faults of {kind!r} must be a fault model: got {faults!r}.")


for _model in (OneChip, Combined, Transient, BitRates):
    FAULT_MODELS[_model.kind] = _model
