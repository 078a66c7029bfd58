"""Energy per memory access and per MAC in a technology: tables whose every entry names its source."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from neuralfuse.energy.counts import Counts
from neuralfuse.errors import ConfigError, FileFormatError, require, unknown_name

TECHNOLOGIES = ("45nm", "7nm")
_PJ = 1e-12


@dataclass(frozen=True, kw_only=True)
class Mac:
    """Energy of one multiply-accumulate of words of this width, in picojoules."""

    bits: int
    pj: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Sram:
    """Energy per access to an SRAM bank of this capacity, in picojoules."""

    kib: float
    pj: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Leakage power per stored bit at the nominal voltage, in picowatts."""

    pw_per_bit: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Dram:
    """Energy per access to off-chip memory, in picojoules."""

    pj: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Joules:
    """Energy of one inference by component, in joules."""

    weights: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0
    macs: float = 0.0
    leakage: float = 0.0
    dram: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the components."""
        return math.fsum(asdict(self).values())

    def to_config(self) -> dict[str, float]:
        """Return the components and their sum as JSON."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, kw_only=True)
class Supply:
    """Supply voltages of the memories, and their consequences.

    Attributes:
        weights: Energy per access to the weight memory, relative to the nominal voltage.
        activations: Energy per access to the input and output memories, relative to the nominal voltage.
        overhead: Extra bits in the weight memory as a share of its bits, e.g. for error correction.
        voltage: Voltage of the weight memory, relative to the nominal voltage. Leakage power is proportional to it,
            an upper bound: the leakage current falls, too.
        seconds: Duration of an inference, for leakage.
    """

    weights: float = 1.0
    activations: float = 1.0
    overhead: float = 0.0
    voltage: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Technology:
    """A table of energies at the nominal voltage.

    Args:
        name: Name of the technology.
        node: Technology node and nominal voltage.
        access_bits: Width of one access to SRAM or DRAM.
        mac: Energies of MACs, by width.
        sram: Energies per SRAM access, by capacity of a bank. Other capacities are not interpolated.
        leakage: Leakage; None for no leakage.
        dram: Energy per DRAM access, once per weight and inference; None if the weights are on the chip already.
        note: What the table leaves out.
    """

    name: str
    node: str
    access_bits: int
    mac: tuple[Mac, ...]
    sram: tuple[Sram, ...]
    leakage: Leakage | None = None
    dram: Dram | None = None
    note: str = ""

    def __post_init__(self) -> None:
        require(self.access_bits >= 1, f"access_bits must be at least 1: got {self.access_bits}.")
        require(len(self.mac) > 0 and len(self.sram) > 0, "a technology must have [[mac]] and [[sram]]: got none.")
        for entry in (*self.mac, *self.sram, self.leakage, self.dram):
            for name, value in {} if entry is None else asdict(entry).items():
                if name == "source":
                    legal = isinstance(value, str) and bool(value.strip())
                    require(legal, f"every entry must name its source: got {entry}.")
                    continue
                number = isinstance(value, int | float) and not isinstance(value, bool)
                require(
                    number and math.isfinite(value) and value > 0, f"{name} must be a positive number: got {entry}."
                )

    def mac_joules(self, bits: int) -> float:
        """Return the energy of one MAC, by the narrowest arithmetic that is wide enough."""
        fits = [one for one in self.mac if one.bits >= bits]
        if not fits:
            widths = ", ".join(str(one.bits) for one in self.mac)
            raise ConfigError(f"{self.name} must have arithmetic for {bits} bits: it has {widths}.")
        return min(fits, key=lambda one: one.bits).pj * _PJ

    def word_joules(self, bits: int, kib: float) -> float:
        """Return the energy per word read from or written to a bank of this capacity."""
        for one in self.sram:
            if one.kib == kib:
                return one.pj * _PJ * bits / self.access_bits
        sizes = ", ".join(f"{one.kib:g}" for one in self.sram)
        raise ConfigError(f"the capacity of a {self.name} bank must be one of {sizes} KiB: got {kib:g}.")

    def inference(self, counts: Counts, *, bits: int, kib: float, supply: Supply | None = None) -> Joules:
        """Return the energy of one inference. As in the paper, arithmetic is at the nominal voltage.

        Args:
            counts: Accesses, MACs and words of the inference.
            bits: Width of all words in bits.
            kib: Capacity of a memory bank in KiB.
            supply: Supply voltages of the memories; by default all are nominal.
        Raises:
            ConfigError: the technology lacks such a width or capacity, or ``seconds`` is missing for its leakage.
        """
        supply = supply or Supply()
        word, moved = self.word_joules(bits, kib), counts.accesses
        leak, dram, words = self.leakage, self.dram, counts.words * (1 + supply.overhead)
        legal = math.isfinite(supply.seconds) and (supply.seconds > 0 or (leak is None and supply.seconds == 0))
        require(
            legal,
            f"inference-seconds must be positive for a technology with leakage, otherwise at least 0: got "
            f"{supply.seconds:g} for {self.name}.",
        )
        leaked = 0.0 if leak is None else leak.pw_per_bit * _PJ * words * bits * supply.seconds * supply.voltage
        stored = (moved.weight_reads - counts.reliable_reads) * supply.weights * (1 + supply.overhead)
        return Joules(
            weights=(stored + counts.reliable_reads) * word,
            inputs=moved.input_reads * word * supply.activations,
            outputs=(moved.output_writes + moved.output_reads) * word * supply.activations,
            macs=counts.macs * self.mac_joules(bits),
            leakage=leaked,
            dram=0.0 if dram is None else words * bits / self.access_bits * dram.pj * _PJ,
        )

    def to_config(self) -> dict[str, Any]:
        """Return the table as JSON."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return found | {name: list(found[name]) for name in ("mac", "sram")}

    @staticmethod
    def named(name: str) -> Technology:
        """Return a table of the package.

        Raises:
            UnknownNameError: the package has no table of this name.
        """
        if name not in TECHNOLOGIES:
            raise unknown_name("technology", name, TECHNOLOGIES)
        text = resources.files("neuralfuse").joinpath("energy", "data", f"{name}.toml").read_text(encoding="utf-8")
        return Technology.from_config(tomllib.loads(text), name)

    @staticmethod
    def from_toml(path: Path | str) -> Technology:
        """Read a table from a file in the form of the package's own (``energy/data/45nm.toml``).

        Raises:
            FileFormatError: the file is missing, or holds no such table.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"cannot read the technology {path}: {error}.") from error
        return Technology.from_config(table, str(path))

    @staticmethod
    def from_config(table: Mapping[str, Any], where: str) -> Technology:
        """Return the table from the contents of a TOML file or a record.

        Raises:
            FileFormatError: the contents are no such table.
        """
        parts: dict[str, Any] = dict(table)
        try:
            for name, kind in (("mac", Mac), ("sram", Sram)):
                parts[name] = tuple(kind(**entry) for entry in parts.get(name, ()))
            for name, one in (("leakage", Leakage), ("dram", Dram)):
                parts[name] = one(**parts[name]) if name in parts else None
            return Technology(**parts)
        except (TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{where} must be a table of energies: {error}") from error
