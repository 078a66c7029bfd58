"""Fault models of particular chips: measured maps, and synthetic chips with published statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch

from neuralfuse.errors import ConfigError, check_ber, require, unknown_name
from neuralfuse.faults.array_faults import ArrayFaults
from neuralfuse.faults.arrays import WORD_LAYOUTS, WordLayout
from neuralfuse.faults.base import FAULT_MODELS, FaultModel, part_seed
from neuralfuse.faults.behaviour import FaultyCells, distinct
from neuralfuse.faults.correlated import Clusters, Lines
from neuralfuse.faults.layout import Layout
from neuralfuse.faults.maps import FaultMap, as_faulty_cells
from neuralfuse.faults.voltage import VoltageCurve
from neuralfuse.seeds import bernoulli, derive, poisson_time


@dataclass(frozen=True, kw_only=True)
class Measured(FaultModel):
    """A chip whose faulty cells are known from a fault map. ``ber`` is their share at the chosen voltage.

    Args:
        map: The fault map, or its NPZ file.
        voltage: Voltage of the map to use. None for the only map.
        mapping: How words are laid onto the array, or the mapping's name.
        random_offset: Whether each seed draws another position for the first word. This gives several placements on
            the one chip. By default, all seeds are the same chip.
    """

    kind: ClassVar[str] = "map"
    ber: float = field(init=False)
    map: FaultMap
    voltage: float | None = None
    mapping: WordLayout = WORD_LAYOUTS["linear"]
    random_offset: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.map, str | Path):
            object.__setattr__(self, "map", FaultMap.load(self.map))
        require(isinstance(self.map, FaultMap), f"map must be a fault map or its NPZ file: got {self.map!r}.")
        own_place = self.random_offset
        require(isinstance(own_place, bool), f"random_offset must be true or false: got {own_place!r}.")
        object.__setattr__(self, "mapping", WordLayout.of(self.mapping))
        object.__setattr__(self, "ber", self.map.rate(self.voltage))

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the cells of the layout that lie on faulty ones."""
        faults = as_faulty_cells(self.map.cells[self.map.index(self.voltage)], device)
        return self.placement(layout.bits, seed).place(layout, self.map.array, faults)

    def placement(self, bits: int, seed: int) -> WordLayout:
        """Return how words of this width are laid onto the chip with this seed."""
        if not self.random_offset:
            return self.mapping
        words = self.mapping.words(self.map.array, bits) * (self.map.array.banks or 1)
        return replace(self.mapping, offset=self.mapping.offset + derive(seed, "chip", "offset") % words)

    @property
    def has_map(self) -> bool:
        """Whether a fault map says which cells fail at a voltage: always True."""
        return True

    @property
    def one_chip(self) -> bool:
        """Whether every seed is the same chip: True unless each seed draws another position for the words."""
        return not self.random_offset

    def at(self, ber: float) -> Self:
        """Raise `ConfigError`: a measured chip has voltages, not rates."""
        raise ConfigError(f"a measured chip needs a voltage, not a rate: got ber={ber:g}.")

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> Measured:
        """Return the chip at another of its measured voltages. No curve is needed."""
        return replace(self, voltage=voltage)


class Profile(NamedTuple):
    """Published statistics of one chip at one voltage: shares of all cells, as fractions."""

    zero_to_one: float
    one_to_zero: float
    persistent: float


# Source: Stutz et al., Bit Error Robustness for Energy-Efficient DNN Accelerators (MLSys 2021), supplementary material,
# table of the profiled chips (p_0t1, p_1t0, p_sa in percent).
PROFILES = {
    "stutz-1-high": Profile(0.0127, 0.0147, 0.01223),
    "stutz-1-low": Profile(0.0038, 0.0049, 0.00393),
    "stutz-2-high": Profile(0.03443, 0.01091, 0.00627),
    "stutz-2-middle": Profile(0.0082, 0.0019, 0.00105),
    "stutz-2-low": Profile(0.00115, 0.00021, 0.0001),
    "stutz-3-high": Profile(0.0181, 0.0048, 0.00204),
    "stutz-3-low": Profile(0.00496, 0.000995, 0.00206),
}


@dataclass(frozen=True, kw_only=True)
class Synthetic(ArrayFaults):
    """A synthetic chip of stuck-at faults. Some lie in weak columns, and some come at single reads only.

    We know of no public fault map of a measured SRAM. A synthetic chip shares the *statistics* of a published chip, and
    every record says so. ``ber`` is the share of cells that fail at a read, in either direction.

    Args:
        zero_to_one: Share of the faulty cells that read 1, in weak columns too.
        persistent: Share of the faults that are the same at every read. The others are drawn anew. Shares divide the
            time -ln(1 - rate). At small rates, this is close to dividing the rate.
        column_share: Share of the persistent faults that lie in weak columns.
        within: Share of a weak column's cells that fail.
    """

    kind: ClassVar[str] = "synthetic"
    zero_to_one: float = 0.5
    persistent: float = 1.0
    column_share: float = 0.0
    within: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("zero_to_one", "persistent", "column_share", "within"):
            object.__setattr__(self, name, check_ber(getattr(self, name), name))
        require(self.ber < 1, "ber of a synthetic chip must be below 1: got ber=1.")
        self._columns()

    @classmethod
    def like(cls, profile: str, **options: Any) -> Synthetic:
        """Return a chip with the published statistics of one of `PROFILES`.

        Column alignment was published as pictures only, so ``column_share`` and ``within`` are the caller's assumption.
        """
        if profile not in PROFILES:
            raise unknown_name("chip profile", profile, PROFILES)
        p = PROFILES[profile]
        ber = p.zero_to_one + p.one_to_zero
        persistent = poisson_time(p.persistent) / poisson_time(ber)
        return cls(ber=ber, zero_to_one=p.zero_to_one / ber, persistent=persistent, **options)

    def array_cells(self, banks: int, seed: int, device: torch.device) -> FaultyCells:
        """Return the persistent faults."""
        weak = self._columns().array_cells(banks, seed, device)
        alone = self._cells(self.persistent * (1 - self.column_share)).array_cells(banks, seed, device)
        cell = distinct(torch.cat([weak.cell, alone.cell]))
        flips = bernoulli(derive(seed, "chip", "synthetic polarity"), cell, self.zero_to_one)
        return FaultyCells(cell, torch.zeros_like(flips), flips)

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells at one read."""
        persistent = super().cells(layout, seed, device)
        if self.persistent == 1:
            return persistent
        fresh = self._cells(1 - self.persistent)
        return persistent.then(fresh.cells(layout, part_seed(seed, "read", read), device))

    @property
    def permanent(self) -> FaultModel | None:
        """The persistent faults."""
        if self.persistent in (0, 1):
            return self if self.persistent else None
        return replace(self, ber=self._rate(self.persistent), persistent=1.0)

    def _rate(self, share: float) -> float:
        return -math.expm1(-share * poisson_time(self.ber))

    def _columns(self) -> Lines:
        return Lines(
            ber=self._rate(self.persistent * self.column_share), along="column", within=self.within,
            stuck_at_1=self.zero_to_one, array=self.array, mapping=self.mapping,
        )  # fmt: skip

    def _cells(self, share: float) -> Clusters:
        return Clusters(
            ber=self._rate(share), height=1, width=1, stuck_at_1=self.zero_to_one,
            array=self.array, mapping=self.mapping,
        )  # fmt: skip


for _model in (Measured, Synthetic):
    FAULT_MODELS[_model.kind] = _model
