"""Fault maps, measured or synthetic: the behaviour of each cell of an array, at one voltage or several."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from neuralfuse.errors import FileFormatError, UnknownNameError, require, unknown_name
from neuralfuse.faults.arrays import Array, WordLayout
from neuralfuse.faults.base import FaultModel
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.layout import Layout
from neuralfuse.files import DAMAGED, read_arrays, write_arrays
from neuralfuse.seeds import derive

SCHEMA = "neuralfuse/fault-map/1"
GOOD, STUCK_AT_0, STUCK_AT_1, INVERTS = range(4)
Reads = Literal["flip", "0", "1", "stuck"]
_PAIR = re.compile(r"fmap_sa([01])_v_(.+)\.txt")


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultMap:
    """The behaviour of every cell of an array, at one voltage or several.

    Attributes:
        cells: uint8 (V, banks, rows, columns): 0 good, 1 stuck at 0, 2 stuck at 1, 3 inverts.
        voltages: One voltage per map, falling, in ``unit``. Empty for a single map without a voltage.
        source: Where the map comes from.
        synthetic: Whether a program made the map. A measured map is not synthetic.
        unit: Unit of the voltages.
    """

    cells: NDArray[np.uint8] = field(repr=False)
    voltages: tuple[float, ...] = ()
    source: str
    synthetic: bool
    unit: str = "V"

    def __post_init__(self) -> None:
        require(
            self.cells.ndim == 4 and self.cells.size > 0 and self.cells.dtype == np.uint8,
            f"a fault map must be uint8 (V, banks, rows, columns): got {self.cells.dtype} {self.cells.shape}.",
        )
        require(int(self.cells.max()) <= INVERTS, f"a cell's behaviour must be 0..3: got {self.cells.max()}.")
        require(bool(self.source.strip()), "a fault map must name its source: got none.")
        require(
            len(self.voltages) == len(self.cells) or (not self.voltages and len(self.cells) == 1),
            f"a fault map must have one voltage per map: got {len(self.voltages)} for {len(self.cells)} maps.",
        )
        sane = all(math.isfinite(one) and one > 0 for one in self.voltages)
        require(sane, f"voltages of a fault map must be positive: got {self.voltages}.")
        falling = all(high > low for high, low in zip(self.voltages, self.voltages[1:], strict=False))
        require(falling, f"voltages of a fault map must fall: got {self.voltages}.")

    @property
    def array(self) -> Array:
        """The shape of the memory."""
        _, banks, rows, columns = self.cells.shape
        return Array(rows=rows, columns=columns, banks=banks)

    @property
    def fingerprint(self) -> str:
        """A short digest of the cells."""
        return hashlib.sha256(np.ascontiguousarray(self.cells).tobytes()).hexdigest()[:16]

    def index(self, voltage: float | None) -> int:
        """Return the index of the map taken at a voltage. None selects the only map.

        Raises:
            UnknownNameError: no map was taken at this voltage.
            ConfigError: ``voltage`` is None and there are several maps.
        """
        if voltage is None:
            known = ", ".join(f"{one:g}" for one in self.voltages)
            require(len(self.cells) == 1, f"a fault map of several voltages needs a voltage: choose one of {known}.")
            return 0
        near = [place for place, one in enumerate(self.voltages) if abs(one - voltage) <= 1e-9 * one]
        if not near:
            known = ", ".join(f"{one:g}" for one in self.voltages) or "none"
            raise UnknownNameError(
                f"voltage must be one of the fault map's: got {voltage:g} {self.unit}, it has {known}."
            )
        return near[0]

    def rate(self, voltage: float | None = None) -> float:
        """Return the share of faulty cells."""
        return float(np.count_nonzero(self.cells[self.index(voltage)]) / self.cells[0].size)

    def counts(self, voltage: float | None = None) -> dict[str, float]:
        """Return the shares of cells that are faulty, stuck at 0, stuck at 1, and inverting."""
        cells = self.cells[self.index(voltage)]
        names = {"stuck_at_0": STUCK_AT_0, "stuck_at_1": STUCK_AT_1, "inverts": INVERTS}
        shares = {name: float(np.count_nonzero(cells == kind) / cells.size) for name, kind in names.items()}
        return {"faulty": sum(shares.values()), **shares}

    def recovered(self) -> int:
        """Count the cells that fail at a voltage and not at the next lower one. The count is 0 if faults nest."""
        return sum(
            int(np.count_nonzero((high != GOOD) & (low == GOOD)))
            for high, low in zip(self.cells, self.cells[1:], strict=False)
        )

    def save(self, path: Path | str) -> None:
        """Write the map as NPZ with a JSON header."""
        header = {"schema": SCHEMA, **self.to_config(), "voltages": list(self.voltages)}
        write_arrays(Path(path), header, {"cells": self.cells})

    @staticmethod
    def load(path: Path | str) -> FaultMap:
        """Read a map that `save` wrote.

        Raises:
            FileFormatError: the file is not a fault map, or is damaged.
        """
        header, arrays = read_arrays(Path(path), SCHEMA, ["cells"])
        try:
            fault_map = FaultMap(
                cells=arrays["cells"],
                voltages=tuple(float(one) for one in header["voltages"]),
                source=header["source"],
                synthetic=bool(header["synthetic"]),
                unit=header["unit"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{path} must hold a fault map: {error}") from error
        if fault_map.fingerprint != header.get("fingerprint"):
            raise FileFormatError(f"{path} must hold the cells that were saved: their digest differs.")
        return fault_map

    def to_config(self) -> dict[str, Any]:
        """Return the properties that identify the map, as JSON."""
        return {
            "source": self.source,
            "synthetic": self.synthetic,
            "unit": self.unit,
            "shape": list(self.cells.shape),
            "fingerprint": self.fingerprint,
        }


def import_map(
    paths: Sequence[Path],
    *,
    source: str,
    reads: Reads = "stuck",
    voltages: Sequence[float] = (),
    unit: str = "V",
    synthetic: bool = False,
) -> FaultMap:
    """Make a fault map from measured files.

    Each file is a map of 0 (good) and 1 (faulty): NPY, NPZ with one array, or text of numbers separated by commas or
    blanks. Its shape is (rows, columns), or (banks, rows, columns) for NPY and NPZ. ``fmap_sa0_v_X.txt`` and
    ``fmap_sa1_v_X.txt`` in one folder are a pair: the cells stuck at 0 and at 1 at voltage X. A folder is imported as
    all pairs in it.

    Args:
        paths: Files of one shape, or a folder.
        source: Where the chip was measured. Every record repeats it.
        reads: What a faulty cell of a 0/1 map reads: the inverted bit (``flip``), ``0``, ``1``, or a fixed random value
            (``stuck``).
        voltages: One voltage per file, unless the file names give them.
        unit: Unit of the voltages.
        synthetic: Whether a program made the files. The map is labelled so.
    Raises:
        FileFormatError: a file is missing, is not a map, or has another shape than the first.
        ConfigError: there is no file, or the voltages do not fit the files.
    """
    if reads not in get_args(Reads):
        raise unknown_name("behaviour of faulty cells", str(reads), get_args(Reads))
    folders = [(path, path.is_dir()) for path in map(Path, paths)]
    files = [file for path, many in folders for file in (sorted(path.glob("fmap_sa[01]_v_*.txt")) if many else [path])]
    require(len(files) > 0, f"there must be at least one fault map: got none in {', '.join(map(str, paths)) or '-'}.")
    named = {file: _PAIR.fullmatch(file.name) for file in files}
    if all(named.values()):
        require(not voltages, "voltages must not be given for files fmap_sa0_v_X.txt: the file names give them.")
        found = {(file.parent, match[2]) for file, match in named.items() if match}
        maps = {_number(text, folder): _pair(folder, text) for folder, text in sorted(found)}
        same = sorted(f"{folder}/...{text}" for folder, text in found)
        require(len(maps) == len(found), f"each voltage must have one pair of files: got {', '.join(same)}.")
    else:
        require(
            len(voltages) == len(files) or (not voltages and len(files) == 1),
            f"there must be one voltage per file: got {len(voltages)} for {len(files)} files.",
        )
        single = [_behaviour(_binary(file), reads) for file in files]
        maps = dict(zip(voltages or (0.0,), single, strict=True))
        require(len(maps) == len(files), f"voltages must differ from file to file: got {list(voltages)}.")
    shapes = {one.shape for one in maps.values()}
    if len(shapes) > 1:
        raise FileFormatError(f"all maps of one chip must have the same shape: got {sorted(shapes)}.")
    falling = sorted(maps, reverse=True)
    known = all(named.values()) or bool(voltages)
    return FaultMap(
        cells=np.stack([maps[one] for one in falling]),
        voltages=tuple(falling) if known else (),
        source=source,
        synthetic=synthetic,
        unit=unit,
    )


def synthetic_map(
    models: Sequence[FaultModel],
    seed: int,
    *,
    rows: int,
    columns: int,
    banks: int = 1,
    voltages: Sequence[float] = (),
    unit: str = "V",
) -> FaultMap:
    """Return a synthetic map: the cells of an array that are faulty under a fault model for a seed.

    Args:
        models: One fault model per voltage, or a single one without voltages. Faults with a place in an array are put
            into this array.
        seed: Seed of the chip.
        rows: Rows per bank.
        columns: Columns per bank.
        banks: Number of banks.
        voltages: One voltage per model.
        unit: Unit of the voltages.
    """
    require(
        len(models) == len(voltages or (0,)),
        f"there must be one voltage per fault model: got {len(voltages)} for {len(models)}.",
    )
    require(len(set(voltages)) == len(voltages), f"voltages must differ: got {list(voltages)}.")
    array = Array(rows=rows, columns=columns, banks=banks)
    layout = Layout.of([("array", banks * rows * columns)], 1)  # its cell k is cell k of the array
    maps = {}
    for voltage, model in zip(voltages or (0.0,), models, strict=True):
        faults = model.on_array(array, WordLayout()).cells(layout, seed, torch.device("cpu"))
        kinds = torch.where(
            faults.keeps,
            torch.where(faults.flips, INVERTS, GOOD),
            torch.where(faults.flips, STUCK_AT_1, STUCK_AT_0),
        )
        cells = np.zeros(layout.cells, np.uint8)
        cells[faults.cell.numpy()] = kinds.numpy().astype(np.uint8)
        maps[voltage] = cells.reshape(banks, rows, columns)
    falling = sorted(maps, reverse=True)
    config = {key: value for key, value in models[0].to_config().items() if key not in ("ber", "array", "mapping")}
    return FaultMap(
        cells=np.stack([maps[one] for one in falling]),
        voltages=tuple(falling) if voltages else (),
        source=f"generated by neuralfuse: {json.dumps(config)}, seed {seed}",
        synthetic=True,
        unit=unit,
    )


def as_faulty_cells(cells: NDArray[np.uint8], device: torch.device) -> FaultyCells:
    """Return the faulty cells of a map (banks, rows, columns), numbered (bank * rows + row) * columns + column."""
    flat = cells.ravel()
    place = np.flatnonzero(flat)
    behaviour = torch.from_numpy(flat[place]).to(device)
    return FaultyCells(torch.from_numpy(place).to(device), behaviour == INVERTS, behaviour >= STUCK_AT_1)


def _number(text: str, folder: Path) -> float:
    try:
        voltage = float(text)
    except ValueError:
        voltage = math.nan
    if not math.isfinite(voltage):
        raise FileFormatError(f"{folder}/fmap_sa0_v_{text}.txt must have a voltage after v_: got {text!r}.")
    return voltage


def _pair(folder: Path, voltage: str) -> NDArray[np.uint8]:
    at_0, at_1 = (_binary(folder / f"fmap_sa{polarity}_v_{voltage}.txt") for polarity in (0, 1))
    if at_0.shape != at_1.shape or (at_0 & at_1).any():
        common = int((at_0 & at_1).sum()) if at_0.shape == at_1.shape else 0
        raise FileFormatError(
            f"the maps of cells stuck at 0 and at 1 in {folder} at {voltage} must have the same shape and no cell in "
            f"common: got {at_0.shape[1:]} and {at_1.shape[1:]}, {common} in common."
        )
    return (at_0 * STUCK_AT_0 + at_1 * STUCK_AT_1).astype(np.uint8)


def _binary(path: Path) -> NDArray[np.bool_]:
    """Return a file's 0/1 map, (banks, rows, columns)."""
    try:
        if path.suffix in {".npy", ".npz"}:
            with path.open("rb") as stream:
                loaded = np.load(stream, allow_pickle=False)
                if isinstance(loaded, np.ndarray) != (path.suffix == ".npy"):
                    raise ValueError("its content is not of the kind that its suffix names")
                if not isinstance(loaded, np.ndarray):
                    if len(loaded.files) != 1:
                        raise ValueError(f"it must hold one array: got {', '.join(loaded.files)}")
                    loaded = loaded[loaded.files[0]]
        else:
            text = path.read_text(encoding="utf-8-sig")
            comma = "," if "," in text else None
            rows = [line.split(comma) for line in text.splitlines() if line.strip()]
            loaded = np.array(rows).astype(np.float64)  # an empty field is no number
    except (*DAMAGED, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(f"{path} must be a map of 0 and 1, one row per line: {reason}.") from error
    values = np.asarray(loaded)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or not values.size or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise FileFormatError(
            f"{path} must be a map of 0 and 1, (rows, columns) or (banks, rows, columns): got {values.dtype} of shape "
            f"{np.shape(loaded)}" + (" with other numbers." if values.size and values.ndim == 3 else ".")
        )
    return values.astype(bool)


def _behaviour(faulty: NDArray[np.bool_], reads: Reads) -> NDArray[np.uint8]:
    if reads == "stuck":
        draw = np.random.RandomState(np.random.Philox(key=derive("imported map", "polarity")))
        kinds = np.where(draw.random_sample(faulty.shape) < 0.5, STUCK_AT_1, STUCK_AT_0)
    else:
        kinds = np.full(faulty.shape, {"flip": INVERTS, "0": STUCK_AT_0, "1": STUCK_AT_1}[reads])
    return np.where(faulty, kinds, GOOD).astype(np.uint8)
