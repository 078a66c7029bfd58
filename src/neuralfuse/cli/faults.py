"""Options that say which cells fail: a name and a rate, a voltage, a measured map, or a file that describes more."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralfuse.errors import ConfigError, FileFormatError

if TYPE_CHECKING:
    from neuralfuse.faults import FaultModel, VoltageCurve, WordLayout


@dataclass(frozen=True, kw_only=True)
class FaultOptions:
    """Which cells fail.

    Attributes:
        ber: Rate of faulty cells, a fraction in [0, 1].
        faults: A name (flip, stuck, asymmetric, lines, clusters, synthetic, reference), a TOML or JSON file that
            describes a fault model, a fault map (NPZ, from `neuralfuse chip import`), or a chip (NPZ, from
            `neuralfuse chip new`).
        stuck_at_1: Share of the stuck cells that read 1 (0.5 by default).
        voltage: Supply voltage, in the place of --ber; a fault map has its own.
        curve: CSV file with the rate at each voltage (voltage,ber[,energy], and a line "# source: ..."), or the name of
            a curve that comes along: paper, a model through the paper's two points in units of Vmin, from 0.8 on (used
            where you say nothing), or xilinx-vc707, measured on an FPGA's block RAMs.
        mapping: How words are laid onto an array: linear, per-layer, row-interleaved, bit-interleaved, reference.
        offset: Number of the array's word at which the first one lies.
    """

    ber: float | None = None
    faults: str = "stuck"
    stuck_at_1: float | None = None
    voltage: float | None = None
    curve: str | None = None
    mapping: str | None = None
    offset: int = 0

    def model(self, placements: int = 1) -> FaultModel:
        """Return the fault model; a fault map is laid under the words in ``placements`` places, one a seed."""
        from neuralfuse.faults import (  # noqa: PLC0415
            ArrayFaults,
            FaultMap,
            Measured,
            Saved,
            fault_model,
            from_config,
        )
        from neuralfuse.files import read_arrays  # noqa: PLC0415

        path = Path(self.faults)
        if path.suffix == ".npz":
            header, _ = read_arrays(path, None, [])
            if header["schema"].startswith("neuralfuse/chip/"):
                self._refuse("a saved chip", "ber", "voltage", "curve", "mapping", "offset", "stuck_at_1")
                return Saved(file=path)
            self._refuse("a fault map", "ber", "curve", "stuck_at_1")
            return Measured(
                map=FaultMap.load(path),
                voltage=self.voltage,
                mapping=self._mapping(),
                random_offset=placements > 1,
            )
        if path.suffix in {".toml", ".json"}:
            self._refuse("a file of a fault model", "mapping", "offset", "stuck_at_1")
            model = from_config(_read_table(path))
            return self._at_operating_point(model) if self._has_operating_point() else model
        given = [name for name in ("ber", "voltage") if getattr(self, name) is not None]
        if len(given) != 1:
            got = "both" if given else "neither"
            raise ConfigError(f"one of --ber and --voltage must say how many cells fail: got {got}.")
        options: dict[str, Any] = {} if self.stuck_at_1 is None else {"stuck_at_1": self.stuck_at_1}
        if self.mapping is not None:
            options["mapping"] = self._mapping()
        if self.curve is not None and self.voltage is None:
            raise ConfigError("--curve must come with --voltage: a rate needs none.")
        model = fault_model(self.faults, ber=self.ber or 0.0, **options)
        if self.offset:
            if not isinstance(model, ArrayFaults):
                raise ConfigError(f"--offset must come with faults that lie in an array: {self.faults!r} do not.")
            model = replace(model, mapping=replace(model.mapping, offset=self.offset))
        return self._at_operating_point(model)

    def at_voltages(self, voltages: Sequence[float]) -> list[FaultModel]:
        """Return the fault model at several voltages, in the place of --ber and --voltage."""
        if self.ber is not None or self.voltage is not None:
            raise ConfigError("--ber and --voltage must be left out with --voltages: the rates are the curve's.")
        return [replace(self, voltage=voltage).model() for voltage in voltages]

    def on_file(self, file: Path) -> FaultOptions:
        """Return the options with a file in the place of a name."""
        return replace(self, faults=str(file))

    def unit(self) -> str:
        """Return the unit of voltages."""
        return self._curve().unit

    def operating_point(self, model: FaultModel) -> dict[str, Any] | None:
        """Return the voltage and the curve that gave the model its rate, for records; None where a rate was given."""
        if self.voltage is None:
            return None
        curve = None if model.has_map else self._curve().to_config()
        return {"voltage": self.voltage, "curve": curve}

    def _has_operating_point(self) -> bool:
        return self.ber is not None or self.voltage is not None

    def _at_operating_point(self, model: FaultModel) -> FaultModel:
        if self.ber is not None and self.voltage is not None:
            raise ConfigError("one of --ber and --voltage must say how many cells fail: got both.")
        if self.voltage is not None:
            return model.at_voltage(self.voltage, self._curve())
        return model if self.ber is None else model.at(self.ber)

    def _curve(self) -> VoltageCurve:
        return open_curve(self.curve)

    def _mapping(self) -> WordLayout:
        from neuralfuse.faults import WordLayout  # noqa: PLC0415

        return replace(WordLayout.of(self.mapping or "linear"), offset=self.offset)

    def _refuse(self, what: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) != FaultOptions.__dataclass_fields__[name].default:
                raise ConfigError(
                    f"--{name.replace('_', '-')} must be left out for {what}, {self.faults}: it is fixed."
                )


def open_curve(name: str | None, energy_law: str | None = None) -> VoltageCurve:
    """Return a curve by its name or file, the default one for None; perhaps with another law for energies."""
    from neuralfuse.faults import VoltageCurve  # noqa: PLC0415

    is_file = name is not None and Path(name).suffix.lower() == ".csv"
    curve = VoltageCurve.from_csv(name) if name is not None and is_file else VoltageCurve.named(name or "paper")
    return curve if energy_law is None else replace(curve, energy_law=energy_law)  # type: ignore[arg-type]  # checked


def _read_table(path: Path) -> dict[str, Any]:
    """Return a TOML or JSON file of one fault model."""
    from neuralfuse.files import read_json  # noqa: PLC0415

    if path.suffix == ".json":
        return read_json(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise FileFormatError(f"{path} must be TOML: {error}.") from error
