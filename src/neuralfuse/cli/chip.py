"""The `chip` commands: make, import, show and draw the faults of one chip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from neuralfuse.cli.common import Common, StorageOptions
from neuralfuse.cli.faults import FaultOptions
from neuralfuse.errors import require

if TYPE_CHECKING:
    import torch

    from neuralfuse.faults import Chip, FaultMap
    from neuralfuse.memory import Deployed

_FLAT = Parameter(name="*")
_COMMON, _STORAGE, _FAULTS = Common(), StorageOptions(), FaultOptions()
chip_app = App(name="chip", help="Make, import, show and draw the faults of one chip.")


@chip_app.command(name="new")
def new(
    *,
    out: Path,
    seed: int = 0,
    base: Path | None = None,
    rows: int = 512,
    columns: int = 64,
    banks: int = 1,
    voltages: tuple[float, ...] = (),
    faults: Annotated[FaultOptions, _FLAT] = _FAULTS,
    storage: Annotated[StorageOptions, _FLAT] = _STORAGE,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Make a chip and save it. With --base: the faulty cells under a model's weights. Without: a synthetic fault map.

    Example: neuralfuse chip new --faults stuck --ber 0.01 --seed 7 --base runs/base --out chip.npz
    Example: neuralfuse chip new --faults clusters --voltages 0.85 --voltages 0.82 --out map.npz

    Parameters
    ----------
    out
        NPZ file to write.
    seed
        Seed of the chip.
    base
        Folder of a base model, written by train-base.
    rows
        Word lines per bank of the map.
    columns
        Bit lines per bank of the map.
    banks
        Number of banks of the map.
    voltages
        Voltages of the map, instead of --ber and --voltage. The voltage curve gives the rates.
    """
    from neuralfuse.faults import Chip, save_chip, synthetic_map  # noqa: PLC0415

    _check_npz(out)
    is_model = not faults.faults.endswith(".npz")
    require(is_model, f"--faults of chip new must be a fault model: {faults.faults} is a chip or a fault map.")
    if base is not None:
        require(not voltages, "--voltages must be left out with --base: such a chip has one voltage. Pass --voltage.")
        shape = (rows, columns, banks) == (512, 64, 1)
        require(shape, "--rows, --columns and --banks must be left out with --base: set the array in a --faults file.")
        deployed = _open(base, storage, common.set_up())
        chip = Chip(faults.model(), seed)
        layout = deployed.memory.readout.stored(deployed.memory.layout)
        save_chip(out, chip, layout)
        text = f"{chip.faults.kind}, seed {seed}: {chip.faults.cell_rate:.4%} of {layout.cells:,} cells. Wrote {out}."
        common.show({"out": str(out), "faults": chip.faults.to_config(), "seed": seed, "cells": layout.cells}, text)
        return
    laid = (faults.mapping, faults.offset, storage) == (None, 0, _STORAGE)
    require(laid, "options for storage and mapping must be left out for a fault map: pass them where the map is used.")
    models = faults.at_voltages(voltages) if voltages else [faults.model()]
    made = synthetic_map(models, seed, rows=rows, columns=columns, banks=banks, voltages=voltages, unit=faults.unit())
    made.save(out)
    common.show({"out": str(out), **made.to_config()}, _map_text(made.to_config(), _rates(made)) + f"\nWrote {out}.")


@chip_app.command(name="import")
def import_(
    *paths: Path,
    out: Path,
    source: str,
    reads: Literal["flip", "0", "1", "stuck"] = "stuck",
    voltages: tuple[float, ...] = (),
    unit: str = "V",
    synthetic: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Make a fault map from measured files of 0 (good) and 1 (faulty): NPY, NPZ, CSV, text, or fmap_sa0/sa1 pairs.

    Example: neuralfuse chip import maps/ --source "chip 3, bench 2, 25 C" --out chip3.npz

    Parameters
    ----------
    paths
        Files of rows x columns, or a folder of pairs fmap_sa0_v_X.txt, fmap_sa1_v_X.txt.
    out
        NPZ file to write.
    source
        Where and how the chip was measured. Every record repeats it.
    reads
        What a faulty cell of a 0/1 map reads: the inverted bit (flip), 0, 1, or a fixed random value (stuck).
    voltages
        One voltage per file, unless the file names give them.
    unit
        Unit of the voltages.
    synthetic
        Label the map as synthetic, because a program made the files.
    """
    from neuralfuse.faults import import_map  # noqa: PLC0415

    _check_npz(out)
    common.set_up()
    made = import_map(paths, source=source, reads=reads, voltages=voltages, unit=unit, synthetic=synthetic)
    made.save(out)
    record = {"out": str(out), **made.to_config(), "rates": _rates(made), "recovered_cells": made.recovered()}
    text = _map_text(record, record["rates"])
    if made.recovered():
        text += f"\nNot nested: {made.recovered()} cells fail at a voltage and not at the next lower one."
    common.show(record, f"{text}\nWrote {out}.")


@chip_app.command(name="show")
def show(
    file: Path | None = None,
    *,
    base: Path | None = None,
    seed: int = 0,
    list_bits: int = 0,
    faults: Annotated[FaultOptions, _FLAT] = _FAULTS,
    storage: Annotated[StorageOptions, _FLAT] = _STORAGE,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Show a fault map, or a chip's effect on a model: per layer, per bit position, and bit by bit.

    Example: neuralfuse chip show --base runs/base --faults stuck --ber 0.01 --seed 7 --list-bits 10
    Example: neuralfuse chip show chip3.npz

    Parameters
    ----------
    file
        A fault map or chip (NPZ), as with --faults FILE.
    base
        Folder of a base model. A fault map can be shown without one.
    seed
        Seed of the chip.
    list_bits
        Number of changed bits to list.
    """
    from neuralfuse.memory.audit import changes, summarize  # noqa: PLC0415

    device = common.set_up()
    require(list_bits >= 0, f"--list-bits must be at least 0: got {list_bits}.")
    if base is None:
        made = _map(file, faults)
        record = {**made.to_config(), "rates": _rates(made), "recovered_cells": made.recovered()}
        common.show(record, _map_text(record, record["rates"]))
        return
    deployed, chip = _open(base, storage, device), _chip(file, faults, seed)
    record = summarize(deployed.memory, chip)
    listed = list(islice(changes(deployed.memory, deployed.memory.read(chip)), list_bits))
    if listed:
        record["changes"] = listed
    common.show(_finite(record), _summary_text(record))


@chip_app.command(name="draw")
def draw(
    file: Path | None = None,
    *,
    out: Path,
    base: Path | None = None,
    seed: int = 0,
    faults: Annotated[FaultOptions, _FLAT] = _FAULTS,
    storage: Annotated[StorageOptions, _FLAT] = _STORAGE,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Draw a fault map, or a chip under a model: the array, and the histogram of weight changes.

    Example: neuralfuse chip draw chip3.npz --out chip3.png

    Parameters
    ----------
    file
        A fault map or chip (NPZ), as with --faults FILE.
    out
        PNG, SVG or PDF file to write.
    base
        Folder of a base model. A fault map can be drawn without one.
    seed
        Seed of the chip.
    """
    from neuralfuse.memory.draw import draw_chip, draw_map  # noqa: PLC0415

    endings = (".png", ".svg", ".pdf")
    require(out.suffix in endings, f"--out must end in {', '.join(endings)}: got {out}.")
    device = common.set_up()
    if base is None:
        draw_map(_map(file, faults), out, voltage=faults.voltage)
    else:
        draw_chip(_open(base, storage, device).memory, _chip(file, faults, seed), out)
    common.show({"out": str(out)}, f"Wrote {out}.")


def _map(file: Path | None, faults: FaultOptions) -> FaultMap:
    from neuralfuse.faults import FaultMap  # noqa: PLC0415

    path = file or Path(faults.faults)
    require(path.suffix == ".npz", "a fault map (NPZ) or --base must be given: got neither.")
    return FaultMap.load(path)


def _chip(file: Path | None, faults: FaultOptions, seed: int) -> Chip:
    from neuralfuse.faults import Chip, Saved  # noqa: PLC0415

    model = faults.model() if file is None else faults.on_file(file).model()
    return Chip(model, model.seed if isinstance(model, Saved) else seed)


def _open(base: Path, storage: StorageOptions, device: torch.device) -> Deployed:
    from neuralfuse.nets.store import load_base  # noqa: PLC0415

    return storage.deploy(load_base(base), device)


def _check_npz(out: Path) -> None:
    require(out.suffix == ".npz", f"--out must end in .npz: got {out}.")


def _rates(fault_map: FaultMap) -> list[dict[str, Any]]:
    known: list[float | None] = list(fault_map.voltages) or [None]
    return [{"voltage": voltage, **fault_map.counts(voltage)} for voltage in known]


def _map_text(config: Mapping[str, Any], rates: list[dict[str, Any]]) -> str:
    _, banks, rows, columns = config["shape"]
    lines = [
        f"{'synthetic' if config['synthetic'] else 'measured'}: {config['source']}",
        f"{banks} bank{'s' * (banks > 1)} of {rows} x {columns} cells\n",
        f"{'voltage':>10}{'faulty':>10}{'reads 0':>10}{'reads 1':>10}{'inverts':>10}",
    ]
    for one in rates:
        voltage = "-" if one["voltage"] is None else f"{one['voltage']:g} {config['unit']}"
        shares = "".join(f"{one[name]:>10.4%}" for name in ("faulty", "stuck_at_0", "stuck_at_1", "inverts"))
        lines.append(f"{voltage:>10}{shares}")
    return "\n".join(lines)


def _summary_text(record: Mapping[str, Any]) -> str:
    readout = record["readout"]
    lines = [
        f"{record['chip']}: {record['faulty_cells']:,} of {record['cells']:,} cells "
        f"faulty; {record['changed_bits']:.4%} of the bits and {record['changed_words'] / record['words']:.3%} of the "
        "words read differently",
    ]
    if readout["kind"] != "plain":
        lines.append(f"readout {readout['kind']} stores {readout['overhead']:.1%} more bits")
    if record["not_finite"]:
        lines.append(f"{record['not_finite']:,} weights read as infinity or NaN")
    lines.append(f"\n{'layer':32}{'words':>12}{'faulty cells':>14}{'changed bits':>14}{'largest change':>16}")
    for one in record["layers"]:
        lines.append(
            f"{one['layer']:32}{one['words']:>12,}{one['faulty_cells']:>14,}{one['changed_bits']:>14,}"
            f"{one['largest_change']:>16.4g}"
        )
    lines.append(f"\n{'bit':>4}{'faulty cells':>14}{'0->1':>10}{'1->0':>10}")
    for one in record["bits"]:
        lines.append(f"{one['bit']:>4}{one['faulty_cells']:>14,}{one['zero_to_one']:>10,}{one['one_to_zero']:>10,}")
    for place, one in enumerate(record.get("changes", [])):
        if place == 0:
            lines.append(f"\n{'layer':32}{'index':20}{'bit':>4}{'':2}{'read':8}{'before':>12}{'after':>12}")
        index = ",".join(map(str, one["index"]))
        lines.append(
            f"{one['layer']:32}{index:20}{one['bit']:>4}{'':2}{one['direction']:8}{one['value_before']:>12.5g}"
            f"{one['value_after']:>12.5g}"
        )
    return "\n".join(lines)


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record that is valid JSON, with infinity and NaN as text."""
    return json.loads(json.dumps(record), parse_constant=str)  # type: ignore[no-any-return]
