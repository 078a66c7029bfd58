"""Voltage curves: the rate of faulty cells and the energy at a supply voltage, each curve with its source."""

from __future__ import annotations

import csv
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from neuralfuse.errors import ConfigError, FileFormatError, check_ber, require, unknown_name

EnergyLaw = Literal["power", "quadratic", "exponential"]
CURVES = ("paper", "xilinx-vc707")


@dataclass(frozen=True, kw_only=True)
class VoltagePoint:
    """One measured or modelled operating point.

    Args:
        voltage: Supply voltage, in the curve's unit.
        ber: Rate of faulty cells there.
        energy: Energy of one access, in any unit. None if unknown.
        model: Whether the point comes from an assumed formula, not from a measurement or a publication.
    """

    voltage: float
    ber: float
    energy: float | None = None
    model: bool = False

    def __post_init__(self) -> None:
        check_ber(self.ber)
        require(
            math.isfinite(self.voltage) and self.voltage > 0, f"voltage must be positive: got voltage={self.voltage}."
        )
        legal = self.energy is None or (math.isfinite(self.energy) and self.energy > 0)
        require(legal, f"energy must be positive: got energy={self.energy}.")


@dataclass(frozen=True, kw_only=True)
class VoltageCurve:
    """Rate of faulty cells and relative energy of an access against supply voltage.

    Between two points, the rate is interpolated on a logarithmic scale, because it grows exponentially as the voltage
    falls. It is interpolated linearly if one rate is 0. The energy follows ``energy_law``: a ``power`` of the voltage,
    ``quadratic`` in it (dynamic energy, C V^2), or ``exponential``. Without any energies, ``quadratic`` is V^2 relative
    to the highest voltage.

    Args:
        points: At least two points, by rising voltage. Rates must not rise with the voltage.
        source: Where the points come from.
        unit: Unit of the voltages: V, or Vmin for voltages relative to the lowest one without errors.
        model: Whether the points come from an assumed formula, not from a measurement.
        energy_law: How the energy runs between points. Every use is labelled as a model.
    """

    points: tuple[VoltagePoint, ...]
    source: str
    unit: str = "V"
    model: bool = False
    energy_law: EnergyLaw = "power"

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))
        if self.energy_law not in get_args(EnergyLaw):
            raise unknown_name("energy law", self.energy_law, get_args(EnergyLaw))
        require(len(self.points) >= 2, f"a voltage curve must have at least two points: got {len(self.points)}.")
        require(bool(self.source.strip()), "a voltage curve must name its source: got none.")
        for low, high in zip(self.points, self.points[1:], strict=False):
            require(
                low.voltage < high.voltage and low.ber >= high.ber,
                f"voltages must rise and rates must not rise with them: got ber={low.ber:g} at {low.voltage:g} and "
                f"ber={high.ber:g} at {high.voltage:g} {self.unit}.",
            )
        known = [point for point in self.points if point.energy is not None]
        for low, high in itertools.pairwise(known):
            require(
                (low.energy or 0) <= (high.energy or 0),
                f"energies must not fall as the voltage rises: got {low.energy:g} at {low.voltage:g} and "
                f"{high.energy:g} at {high.voltage:g} {self.unit}.",
            )

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest voltage of the curve."""
        return self.points[0].voltage, self.points[-1].voltage

    def ber(self, voltage: float) -> float:
        """Return the rate of faulty cells at a voltage.

        Raises:
            ConfigError: the voltage is outside the curve's range. The curve is not extrapolated.
        """
        low, high, part = self._between(voltage)
        if part in (0, 1):
            return (low, high)[int(part)].ber
        if low.ber <= 0 or high.ber <= 0:
            return low.ber + part * (high.ber - low.ber)
        return math.exp((1 - part) * math.log(low.ber) + part * math.log(high.ber))

    def voltage(self, ber: float) -> float:
        """Return the highest voltage with this rate of faulty cells. For 0, return the lowest one without errors.

        Raises:
            ConfigError: the curve does not reach this rate.
        """
        check_ber(ber)
        best, worst = self.points[-1].ber, self.points[0].ber
        require(
            best <= ber <= worst,
            f"ber must be on the voltage curve, in [{best:g}, {worst:g}]: got {ber:g}. The curve is not extrapolated. "
            "Pass a curve with a wider range with --curve.",
        )
        if ber == 0:
            return min(point.voltage for point in self.points if point.ber == 0)
        place = max(place for place, point in enumerate(self.points) if point.ber >= ber)
        low, high = self.points[place : place + 2] if place + 1 < len(self.points) else self.points[-1:] * 2
        if low.ber == ber:
            return low.voltage
        linear = high.ber <= 0
        part = (low.ber - ber) / low.ber if linear else math.log(low.ber / ber) / math.log(low.ber / high.ber)
        return low.voltage + part * (high.voltage - low.voltage)

    @property
    def vmin(self) -> float | None:
        """The lowest voltage without errors. None if the curve does not reach it."""
        return self.voltage(0) if self.points[-1].ber == 0 else None

    def energy(self, voltage: float) -> float:
        """Return the energy per access at a voltage, relative to the highest voltage.

        Raises:
            ConfigError: the voltage is outside the curve's range, or the curve has no energies there.
        """
        low, high, part = self._between(voltage)
        if all(point.energy is None for point in self.points) and self.energy_law == "quadratic":
            return float((voltage / self.range[1]) ** 2)
        at, top = (low, high)[int(part)].energy if part in (0, 1) else None, self.points[-1].energy
        if at is not None and top is not None:
            return at / top
        if low.energy is None or high.energy is None or top is None:
            raise ConfigError(
                f"the voltage curve must have energies for this: {self.source} has none at {voltage:g}. Add energies. "
                "A curve without any can use V^2 as a model, with --energy-law quadratic."
            )
        laws: dict[EnergyLaw, Callable[[float], float]] = {"power": math.log, "quadratic": _square, "exponential": abs}
        scale = laws[self.energy_law]
        share = (scale(voltage) - scale(low.voltage)) / (scale(high.voltage) - scale(low.voltage))
        if self.energy_law == "quadratic":
            return ((1 - share) * low.energy + share * high.energy) / top
        return math.exp((1 - share) * math.log(low.energy) + share * math.log(high.energy)) / top

    def energy_at_rate(self, ber: float) -> float | None:
        """Return the energy of an access at the highest voltage with this rate; None if no voltage has it."""
        return self.energy(self.voltage(ber)) if self.points[-1].ber <= ber <= self.points[0].ber else None

    def is_point(self, voltage: float) -> bool:
        """Return whether the energy at a voltage is measured or published. Between such points, it is a model."""
        return any(point.voltage == voltage and point.energy is not None and not point.model for point in self.points)

    def _between(self, voltage: float) -> tuple[VoltagePoint, VoltagePoint, float]:
        first, last = self.range
        require(
            math.isfinite(voltage) and first <= voltage <= last,
            f"voltage must be on the curve, in [{first:g}, {last:g}] {self.unit}: got {voltage:g}. The curve is not "
            "extrapolated. Pass a curve with a wider range with --curve.",
        )
        place = min(bisect_right([point.voltage for point in self.points], voltage), len(self.points) - 1)
        low, high = self.points[place - 1], self.points[place]
        return low, high, (voltage - low.voltage) / (high.voltage - low.voltage)

    def to_config(self) -> dict[str, Any]:
        """Return the properties that a result depends on, as JSON."""
        points = [[point.voltage, point.ber, point.energy] for point in self.points]
        config = {"source": self.source, "unit": self.unit, "model": self.model, "points": points}
        return config if self.energy_law == "power" else {**config, "energy_law": self.energy_law}

    @staticmethod
    def named(name: str) -> VoltageCurve:
        """Return a curve that comes with the package.

        ``paper`` is `default_curve`. ``xilinx-vc707`` was measured on 2060 block RAMs of an FPGA (28 nm).

        Raises:
            UnknownNameError: there is no such curve.
        """
        if name not in CURVES:
            raise unknown_name("voltage curve", name, CURVES)
        if name == "paper":
            return default_curve()
        with resources.as_file(resources.files("neuralfuse").joinpath("faults", "curves", f"{name}.csv")) as path:
            return VoltageCurve.from_csv(path)

    @staticmethod
    def from_csv(path: Path | str) -> VoltageCurve:
        """Read a curve from CSV: a header ``voltage,ber`` or ``voltage,ber,energy``, then one point per line.

        Lines that begin with # are comments. The line ``# source: ...`` is required. ``# unit: Vmin``, ``# model: yes``
        and ``# energy-law: quadratic`` are optional.

        Raises:
            FileFormatError: the file is missing, names no source, or has a line that is not a point.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FileFormatError(f"cannot read the voltage curve {path}: {error}.") from error
        notes = dict(_note(line) for line in lines if line.startswith("#"))
        if not notes.get("source"):
            raise FileFormatError(f"{path} must name its source: got none. Add a line '# source: ...'.")
        table = csv.DictReader(line for line in lines if line.strip() and not line.startswith("#"))
        columns = [name.strip() for name in table.fieldnames or ()]
        if columns not in (["voltage", "ber"], ["voltage", "ber", "energy"]):
            raise FileFormatError(
                f"{path} must have the columns voltage,ber or voltage,ber,energy: got {','.join(columns) or 'none'}."
            )
        table.fieldnames = columns
        model = notes.get("model", "no").lower() in {"yes", "true", "1"}
        points = []
        for row in table:
            try:
                point = VoltagePoint(**{name: float(row[name]) for name in columns}, model=model)
                require(None not in row, "it has too many fields")
            except (TypeError, ValueError) as error:
                got = ",".join(str(value) for value in row.values())
                raise FileFormatError(f"{path}, line {got!r} must be a point {','.join(columns)}: {error}") from error
            points.append(point)
        points.sort(key=lambda point: point.voltage)
        try:
            return VoltageCurve(
                points=tuple(points), source=notes["source"], unit=notes.get("unit") or "V", model=model,
                energy_law=notes.get("energy-law") or "power",  # type: ignore[arg-type]  # checked when built
            )  # fmt: skip
        except (ConfigError, LookupError) as error:
            raise FileFormatError(f"{path}: {error}") from error


def _note(line: str) -> tuple[str, str]:
    name, _, value = line.lstrip("# ").partition(":")
    return name.strip().lower(), value.strip()


def _square(value: float) -> float:
    return value * value


def default_curve() -> VoltageCurve:
    """Return the default curve: a model through the paper's two points, labelled as a model.

    Voltages v are relative to Vmin and in [0.8, 1]. BER = 0.01 * 10^(23.5 (0.83 - v)) for v < 1, and 0 at v = 1.
    Energy = v^1.96.

    Source:
        NeuralFuse (arXiv 2306.16869), Figure 2, after Chandramoorthy et al., HPCA 2019 (14 nm SRAM, 512 x 64 bits):
        no errors at Vmin, and 1% at 0.83 Vmin with an energy of 0.694 (from its Tables 2 and 8). The curve between
        these points is our assumption: errors vanish exponentially, to about one cell of the 32 measured arrays as
        v -> 1.
    """
    modelled = [
        VoltagePoint(voltage=v, ber=0.01 * 10 ** (23.5 * (0.83 - v)), energy=v**1.96, model=True)
        for v in (0.8, math.nextafter(1, 0))
    ]  # two points are enough: the curve is interpolated by the same laws
    published = [VoltagePoint(voltage=0.83, ber=0.01, energy=0.694), VoltagePoint(voltage=1, ber=0, energy=1)]
    return VoltageCurve(
        points=(modelled[0], published[0], modelled[1], published[1]),
        source="model through two points of NeuralFuse (arXiv 2306.16869), Figure 2",
        unit="Vmin",
        model=True,
    )
