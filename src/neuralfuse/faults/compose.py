"""Fault models made of others: several at once, fresh at every read, or at some bit positions only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import ClassVar, Self

import torch

from neuralfuse.errors import check_ber, require
from neuralfuse.faults.base import FAULT_MODELS, FaultModel, FaultyCells, chance
from neuralfuse.faults.layout import Layout
from neuralfuse.seeds import derive, poisson_time


@dataclass(frozen=True, kw_only=True)
class Combined(FaultModel):
    """Several kinds of faults in one memory; a later part acts on what the earlier ones read.

    ``ber`` is the share of cells that at least one part makes faulty, 1 - product of (1 - rate of the part). At another
    rate all parts grow or shrink together: their times -ln(1 - rate) keep their proportions, so faults nest. Parts of
    one kind hit different cells: each part draws from a seed of its own.

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
        object.__setattr__(self, "ber", 1 - math.prod(1 - part.ber for part in self.parts))

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells; see `FaultModel.cells`. The first part has the seed, the others one of their own."""
        seeds = [seed, *(derive(seed, "part", place) for place in range(1, len(self.parts)))]
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
        rates = [-math.expm1(-factor * poisson_time(part.ber)) for part in self.parts]
        return replace(self, parts=tuple(part.at(rate) for part, rate in zip(self.parts, rates, strict=True)))

    @property
    def permanent(self) -> FaultModel | None:
        """All parts that stay; the others are left in at rate 0, so that each part keeps its place and its seed."""
        kept = tuple(part.permanent or part.at(0) for part in self.parts)
        return None if all(part.permanent is None for part in self.parts) else replace(self, parts=kept)


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
        object.__setattr__(self, "ber", self.faults.ber)

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the cells that fail at this read."""
        return self.faults.cells(layout, derive(seed, "read", read), device)

    def at(self, ber: float) -> Self:
        """Return the same errors at another rate."""
        return replace(self, faults=self.faults.at(ber))

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
        object.__setattr__(self, "shares", tuple(check_ber(share, "share of a bit") for share in self.shares))
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
        return every[chance(layout, seed, "bit position", every.cell, share)]

    def at(self, ber: float) -> Self:
        """Return the same shares of another rate."""
        return replace(self, faults=self.faults.at(ber))

    @property
    def permanent(self) -> FaultModel | None:
        """What stays of the faults."""
        kept = self.faults.permanent
        return None if kept is None else replace(self, faults=kept)


for _model in (Combined, Transient, BitRates):
    FAULT_MODELS[_model.kind] = _model
