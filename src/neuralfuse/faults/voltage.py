"""From a supply voltage to a rate of faulty cells and an energy: curves, each with its source."""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralfuse.errors import ConfigError, FileFormatError, check_ber, require


@dataclass(frozen=True, kw_only=True)
class VoltagePoint:
    """One measured or modelled operating point.

    Args:
        voltage: Supply voltage, in the curve's unit.
        ber: Rate of faulty cells there.
        energy: Energy of one access relative to the highest voltage; None where it is not known.
    """

    voltage: float
    ber: float
    energy: float | None = None

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

    Between two points the rate is interpolated on a logarithmic scale (the rate grows exponentially as the voltage
    falls), linearly where one end is 0, and the energy linearly in the logarithms of voltage and energy.

    Args:
        points: At least two, by rising voltage; rates must not rise with it.
        source: Where they come from.
        unit: Of the voltages: V, or Vmin for voltages relative to the lowest one without errors.
        model: Whether the points come from an assumed formula and not from a measurement.
    """

    points: tuple[VoltagePoint, ...]
    source: str
    unit: str = "V"
    model: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))
        require(len(self.points) >= 2, f"a voltage curve must have at least two points: got {len(self.points)}.")
        require(bool(self.source.strip()), "a voltage curve must name its source: got none.")
        for low, high in zip(self.points, self.points[1:], strict=False):
            require(
                low.voltage < high.voltage and low.ber >= high.ber,
                f"voltages must rise and rates must not rise with them: got ber={low.ber:g} at {low.voltage:g} and "
                f"ber={high.ber:g} at {high.voltage:g} {self.unit}.",
            )

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest voltage for which the curve says something."""
        return self.points[0].voltage, self.points[-1].voltage

    def ber(self, voltage: float) -> float:
        """Return the rate of faulty cells at a voltage.

        Raises:
            ConfigError: the voltage lies outside the curve's range; nothing is extrapolated.
        """
        low, high, part = self._between(voltage)
        if part in (0, 1):
            return (low, high)[int(part)].ber
        if low.ber <= 0 or high.ber <= 0:
            return low.ber + part * (high.ber - low.ber)
        return math.exp((1 - part) * math.log(low.ber) + part * math.log(high.ber))

    def energy(self, voltage: float) -> float:
        """Return the energy of an access at a voltage, relative to the highest one.

        Raises:
            ConfigError: the voltage lies outside the range, or the curve has no energies there.
        """
        low, high, part = self._between(voltage)
        at = (low, high)[int(part)].energy if part in (0, 1) else None
        if at is not None:
            return at
        if low.energy is None or high.energy is None:
            raise ConfigError(f"the voltage curve must have energies for this: {self.source} has none at {voltage:g}.")
        share = math.log(voltage / low.voltage) / math.log(high.voltage / low.voltage)
        return math.exp((1 - share) * math.log(low.energy) + share * math.log(high.energy))

    def _between(self, voltage: float) -> tuple[VoltagePoint, VoltagePoint, float]:
        first, last = self.range
        require(
            math.isfinite(voltage) and first <= voltage <= last,
            f"voltage must lie on the curve, in [{first:g}, {last:g}] {self.unit}: got {voltage:g}. Nothing is "
            "extrapolated; pass a curve that reaches further with --curve.",
        )
        place = min(bisect_right([point.voltage for point in self.points], voltage), len(self.points) - 1)
        low, high = self.points[place - 1], self.points[place]
        return low, high, (voltage - low.voltage) / (high.voltage - low.voltage)

    def to_config(self) -> dict[str, Any]:
        """Return what a result depends on of the curve, as JSON."""
        points = [[point.voltage, point.ber, point.energy] for point in self.points]
        return {"source": self.source, "unit": self.unit, "model": self.model, "points": points}

    @staticmethod
    def from_csv(path: Path | str) -> VoltageCurve:
        """Read a curve: a header ``voltage,ber`` or ``voltage,ber,energy``, then one point a line.

        Lines that begin with # are comments; ``# source: ...`` is required, ``# unit: Vmin`` and ``# model: yes`` are
        understood.

        Raises:
            FileFormatError: the file is missing, has no source, or a line is no point.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FileFormatError(f"cannot read the voltage curve {path}: {error}.") from error
        notes = dict(_note(line) for line in lines if line.startswith("#"))
        if not notes.get("source"):
            raise FileFormatError(f"{path} must say where its numbers come from: add a line '# source: ...'.")
        table = csv.DictReader(line for line in lines if line.strip() and not line.startswith("#"))
        columns = [name.strip() for name in table.fieldnames or ()]
        if columns not in (["voltage", "ber"], ["voltage", "ber", "energy"]):
            raise FileFormatError(
                f"{path} must have the columns voltage,ber or voltage,ber,energy: got {','.join(columns) or 'none'}."
            )
        table.fieldnames = columns
        points = []
        for row in table:
            try:
                point = VoltagePoint(**{name: float(row[name]) for name in columns})
                require(None not in row, "it has more fields")
            except (TypeError, ValueError) as error:
                got = ",".join(str(value) for value in row.values())
                raise FileFormatError(f"{path}, line {got!r} must be a point {','.join(columns)}: {error}") from error
            points.append(point)
        points.sort(key=lambda point: point.voltage)
        model = notes.get("model", "no").lower() in {"yes", "true", "1"}
        try:
            return VoltageCurve(
                points=tuple(points), source=notes["source"], unit=notes.get("unit") or "V", model=model
            )  # fmt: skip
        except ConfigError as error:
            raise FileFormatError(f"{path}: {error}") from error


def _note(line: str) -> tuple[str, str]:
    name, _, value = line.lstrip("# ").partition(":")
    return name.strip().lower(), value.strip()


def default_curve() -> VoltageCurve:
    """Return the curve used where the user names none; a model through the paper's two points, and labelled so.

    Voltage relative to Vmin: BER = 0.01 * 10^(23.5 (0.83 - v)) below 1 and 0 from 1 on; energy v^1.96. From 0.8 on.

    Source:
        NeuralFuse (arXiv 2306.16869), Figure 2, after Chandramoorthy et al., HPCA 2019 (14 nm SRAM, 512 x 64 bits):
        no errors at Vmin; 1% and an energy of 0.694 (from its Tables 2 and 8) at 0.83 Vmin. What lies between is our
        assumption: errors vanish exponentially, to about one cell of the 32 measured arrays as v -> 1.
    """
    below = [
        VoltagePoint(voltage=v, ber=0.01 * 10 ** (23.5 * (0.83 - v)), energy=v**1.96)
        for v in (0.8, math.nextafter(1, 0))
    ]  # two are enough: between points, the curve is interpolated by just these laws
    return VoltageCurve(
        points=(*below, VoltagePoint(voltage=1, ber=0, energy=1)),
        source="model through two points of NeuralFuse (arXiv 2306.16869), Figure 2",
        unit="Vmin",
        model=True,
    )
