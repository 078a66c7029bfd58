"""Options for faults: a fault model with a rate or a voltage, a file of a fault model, a fault map, or a chip."""

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
        faults: A fault model (flip, stuck, asymmetric, lines, clusters, synthetic, reference), a TOML or JSON file that
            describes one, a fault map (NPZ, from `neuralfuse chip import`), or a chip (NPZ, from
            `neuralfuse chip new`).
        stuck_at_1: Share of the stuck cells that read 1 (0.5 by default).
        voltage: Supply voltage, instead of --ber. For a fault map, one of its voltages.
        curve: Voltage curve: a CSV file with the rate at each voltage (voltage,ber[,energy], and a line
            "# source: ..."), or the name of a curve. paper (the default) is a model through the paper's two points, in
            units of Vmin, from 0.8 on. xilinx-vc707 was measured on an FPGA's block RAMs.
        mapping: How words are laid onto an array: linear, per-layer, row-interleaved, bit-interleaved, reference.
        offset: Position of the first word in the array, counted in words.
    """

    ber: float | None = None
    faults: str = "stuck"
    stuck_at_1: float | None = None
    voltage: float | None = None
    curve: str | None = None
    mapping: str | None = None
    offset: int = 0

    def model(self, placements: int = 1) -> FaultModel:
        """Return the fault model. If ``placements`` > 1, each seed lays the words at another place of a fault map."""
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
            raise ConfigError(f"one of --ber and --voltage must be given: got {got}.")
        options: dict[str, Any] = {} if self.stuck_at_1 is None else {"stuck_at_1": self.stuck_at_1}
        if self.mapping is not None:
            options["mapping"] = self._mapping()
        if self.curve is not None and self.voltage is None:
            raise ConfigError("--curve must come with --voltage: a rate needs no curve.")
        model = fault_model(self.faults, ber=self.ber or 0.0, **options)
        if self.offset:
            if not isinstance(model, ArrayFaults):
                raise ConfigError(f"--offset must come with faults in an array: {self.faults!r} faults have none.")
            model = replace(model, mapping=replace(model.mapping, offset=self.offset))
        return self._at_operating_point(model)

    def at_voltages(self, voltages: Sequence[float]) -> list[FaultModel]:
        """Return one fault model per voltage. --ber and --voltage must not be given."""
        if self.ber is not None or self.voltage is not None:
            raise ConfigError("--ber and --voltage must be left out with --voltages: the curve gives the rates.")
        return [replace(self, voltage=voltage).model() for voltage in voltages]

    def on_file(self, file: Path) -> FaultOptions:
        """Return the options with a file instead of a fault model's name."""
        return replace(self, faults=str(file))

    def unit(self) -> str:
        """Return the unit of the voltages."""
        return self._curve().unit

    def operating_point(self, model: FaultModel) -> dict[str, Any] | None:
        """Return the voltage and the curve that gave the model its rate, for records. None if a rate was given."""
        if self.voltage is None:
            return None
        curve = None if model.has_map else self._curve().to_config()
        return {"voltage": self.voltage, "curve": curve}

    def _has_operating_point(self) -> bool:
        return self.ber is not None or self.voltage is not None

    def _at_operating_point(self, model: FaultModel) -> FaultModel:
        if self.ber is not None and self.voltage is not None:
            raise ConfigError("only one of --ber and --voltage may be given: got both.")
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
                raise ConfigError(f"--{name.replace('_', '-')} must be left out for {what}: {self.faults} fixes it.")


def open_curve(name: str | None, energy_law: str | None = None) -> VoltageCurve:
    """Return a voltage curve by name or CSV file. None is the default curve. ``energy_law`` replaces the curve's."""
    from neuralfuse.faults import VoltageCurve  # noqa: PLC0415

    is_file = name is not None and Path(name).suffix.lower() == ".csv"
    curve = VoltageCurve.from_csv(name) if name is not None and is_file else VoltageCurve.named(name or "paper")
    return curve if energy_law is None else replace(curve, energy_law=energy_law)  # type: ignore[arg-type]  # checked


def _read_table(path: Path) -> dict[str, Any]:
    """Return the table in a TOML or JSON file of one fault model."""
    from neuralfuse.files import read_json  # noqa: PLC0415

    if path.suffix == ".json":
        return read_json(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise FileFormatError(f"{path} must be TOML: {error}.") from error
