"""Fault maps, what files they are read from, and chips on disk: whole and the same, or refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import pickle

import numpy as np
import pytest
import torch

from helpers.oracles import packed, within_bounds
from neuralfuse.errors import ConfigError, FileFormatError, NeuralFuseError, ShapeError, UnknownNameError
from neuralfuse.faults import (
    Array,
    Chip,
    Combined,
    FaultMap,
    FaultyCells,
    Flip,
    Layout,
    Measured,
    Stuck,
    fault_model,
    import_map,
    load_chip,
    save_chip,
)
from neuralfuse.files import read_arrays, write_arrays

CPU = torch.device("cpu")
GRID = (np.arange(12).reshape(3, 4) % 5 == 1).astype(float)


def in_bytes(save, *arrays) -> bytes:
    stream = io.BytesIO()
    save(stream, *arrays)
    return stream.getvalue()


def write_grid(path, grid=GRID):
    """Write a 0/1 map in the format that its name says."""
    sign = "," if path.suffix == ".csv" else " "
    text = "\n".join(sign.join(f"{x:g}" for x in row) for row in grid).encode() if grid.ndim == 2 else b""
    saves = {".npy": np.save, ".npz": np.savez}
    path.write_bytes(in_bytes(saves[path.suffix], grid) if path.suffix in saves else text)
    return path


def write_pair(folder, voltage, at_0=GRID, at_1=1 - GRID):
    folder.mkdir(exist_ok=True)
    for polarity, grid in enumerate((at_0, at_1)):
        if grid is not None:
            write_grid(folder / f"fmap_sa{polarity}_v_{voltage}.txt", grid)
    return folder


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "txt", "dat"])
def test_maps_are_read_from_every_format(suffix, tmp_path):
    one = import_map([write_grid(tmp_path / f"map.{suffix}")], source="a test", reads="flip")
    assert np.array_equal(one.cells, 3 * GRID[None, None])
    assert one.voltages == () and not one.synthetic and one.source == "a test"
    assert one.rate() == GRID.mean() == Measured(map=one).ber
    for reads, behaviours in {"0": {0, 1}, "1": {0, 2}, "stuck": {0, 1, 2}}.items():
        other = import_map([tmp_path / f"map.{suffix}"], source="a test", reads=reads)
        assert np.array_equal(other.cells > 0, one.cells > 0) and set(other.cells.flat) <= behaviours


def test_half_of_imported_cells_are_stuck_at_1_the_same_ones_at_every_voltage(tmp_path):
    grids = [np.random.RandomState(0).rand(2, 300, 50) < rate for rate in (0.5, 1)]
    files = [write_grid(tmp_path / f"{place}.npy", grid) for place, grid in enumerate(grids)]
    found = import_map(files, source="x", voltages=(0.6, 0.5), unit="Vmin")
    assert found.cells.shape == (2, 2, 300, 50) and found.array == Array(rows=300, columns=50, banks=2)
    assert found.voltages == (0.6, 0.5) and found.unit == "Vmin" and found.recovered() == 0
    assert np.array_equal(found.cells[0][grids[0]], found.cells[1][grids[0]])
    assert within_bounds((found.cells[1] == 2).sum(), 30_000, 0.5)
    again = import_map(files[::-1], source="x", voltages=(0.5, 0.6))
    assert np.array_equal(again.cells, found.cells)


def test_a_folder_of_stuck_at_pairs_is_one_map_a_voltage(tmp_path):
    write_pair(tmp_path, "0.56")
    write_pair(tmp_path, "0.6", GRID, 0 * GRID)
    found = import_map([tmp_path], source="x")
    assert found.voltages == (0.6, 0.56)
    assert np.array_equal(found.cells[:, 0], [GRID, np.where(GRID > 0, 1, 2)])
    named = import_map([tmp_path / "fmap_sa0_v_0.6.txt"], source="x")
    assert np.array_equal(named.cells, found.cells[:1]) and named.voltages == (0.6,)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemError('a pickle was loaded')",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.npy", None, "one row per line: .*No such file"),
        ("bad.npy", in_bytes(np.save, np.array([[Bomb()]], object)), "allow_pickle=False"),
        ("bad.npz", in_bytes(np.savez, np.array([[Bomb()]], object)), "allow_pickle=False"),
        ("bad.txt", pickle.dumps(Bomb()), "one row per line"),
        ("bad.npy", pickle.dumps(Bomb()), "one row per line"),
        ("bad.npz", in_bytes(np.savez, GRID)[:-40], "one row per line"),
        ("bad.npz", in_bytes(np.save, GRID), ""),
        ("bad.npy", in_bytes(np.savez, GRID), ""),
        ("bad.npz", in_bytes(np.savez, GRID, GRID), "must hold one array: got arr_0, arr_1"),
        ("bad.npy", b"", "one row per line"),
        ("bad.npy", in_bytes(np.save, np.zeros(4)), r"\(banks, rows, columns\): got float64 of shape \(4,\)"),
        ("bad.npy", in_bytes(np.save, GRID * 2), r"got float64 of shape \(3, 4\) with other numbers"),
        ("bad.npy", in_bytes(np.save, GRID * np.nan), "with other numbers"),
        ("bad.csv", b"0,1\n1,x\n", "one row per line: could not convert string to float"),
        ("bad.csv", b"0,1\n1\n", "one row per line"),
        ("bad.txt", b"\n", ""),
    ],
)
def test_files_that_are_no_maps_are_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=f"{name} must be a map of 0 and 1.*{message}"):
        import_map([tmp_path / name], source="x")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("0.5", GRID, None)], r"fmap_sa1_v_0.5.txt must be a map of 0 and 1"),
        ([("0.5", GRID, GRID)], r"at 0.5 must have the same shape and no cell in common: .*, 3 in common"),
        ([("0.5", GRID, GRID[:2])], r"must have the same shape and no cell in common: got \(3, 4\) and \(2, 4\)"),
        ([("low",)], "must have a voltage after v_: got 'low'"),
        ([("0.5",), ("0.6", GRID[:2], 0 * GRID[:2])], r"must have the same shape: got \[\(1, 2, 4\), \(1, 3, 4\)\]"),
        ([("0.5",), ("0.5", 1 - GRID, GRID)], "voltage"),
        ([("0.5",), ("0.50", 1 - GRID, GRID)], "voltage"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs, message, tmp_path):
    folders = [write_pair(tmp_path / str(place), *pair) for place, pair in enumerate(pairs)]
    with pytest.raises((FileFormatError, ConfigError), match=message):
        import_map(folders, source="x")


def test_imports_that_say_too_little_are_refused(tmp_path):
    one, two = (write_grid(tmp_path / name) for name in ("1.csv", "2.csv"))
    for paths, options, message in [
        ([one], {"source": " "}, "a fault map must name its source"),
        ([one, two], {"source": "x"}, "there must be one voltage per file: got 0 for 2"),
        ([one, two], {"source": "x", "voltages": (0.5, 0.5)}, "voltages must differ from file to file"),
        ([one], {"source": "x", "reads": "2"}, "unknown behaviour of faulty cells '2'"),
        ([tmp_path], {"source": "x"}, "there must be at least one fault map: got none in"),
        ([write_pair(tmp_path / "a", "0.5")], {"source": "x", "voltages": (0.5,)}, "voltages must not be given for"),
    ]:
        with pytest.raises(NeuralFuseError, match=message):
            import_map(paths, **options)


TWO = np.array([[[[0, 1], [2, 0], [3, 0]]], [[[3, 1], [0, 0], [3, 2]]]], np.uint8)
KNOWN = FaultMap(cells=TWO, voltages=(0.6, 0.5), source="a test", synthetic=False)


def test_a_fault_map_says_what_it_holds():
    assert KNOWN.array == Array(rows=3, columns=2, banks=1)
    assert (KNOWN.rate(0.6), KNOWN.rate(0.5), KNOWN.recovered()) == (3 / 6, 4 / 6, 1)
    assert (KNOWN.index(0.6), KNOWN.index(0.5 + 1e-12)) == (0, 1)
    shares = {"faulty": 3 / 6, "stuck_at_0": 1 / 6, "stuck_at_1": 1 / 6, "inverts": 1 / 6}
    assert KNOWN.counts(0.6) == pytest.approx(shares)
    with pytest.raises(ConfigError, match="needs a voltage: choose one of 0.6, 0.5"):
        KNOWN.index(None)
    with pytest.raises(UnknownNameError, match="voltage must be one of the fault map's: got 0.55 V, it has 0.6, 0.5"):
        KNOWN.rate(0.55)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cells": TWO[0]}, r"must be uint8 \(V, banks, rows, columns\): got uint8 \(1, 3, 2\)"),
        ({"cells": TWO.astype(int)}, "must be uint8"),
        ({"cells": TWO + np.uint8(1)}, r"a cell's behaviour must be 0\.\.3: got 4"),
        ({"source": ""}, "a fault map must name its source"),
        ({"voltages": (0.6,)}, "must have one voltage per map: got 1 for 2"),
        ({"voltages": (0.5, 0.6)}, r"voltages of a fault map must fall: got \(0.5, 0.6\)"),
    ],
)
def test_impossible_fault_maps_are_refused_in_memory_and_in_files(changed, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(KNOWN, **changed)
    header = {"schema": "neuralfuse/fault-map/1", **KNOWN.to_config(), "voltages": [0.6, 0.5]} | changed
    write_arrays(tmp_path / "m.npz", header | {"cells": None}, {"cells": changed.get("cells", TWO)})
    with pytest.raises(FileFormatError, match=f"m.npz must hold a fault map: .*{message}"):
        FaultMap.load(tmp_path / "m.npz")


def same_map(one, two=KNOWN) -> bool:
    names = ("voltages", "source", "synthetic", "unit", "fingerprint")
    return np.array_equal(one.cells, two.cells) and all(getattr(one, name) == getattr(two, name) for name in names)


REGIONS = [("a", 40), ("b", 7), ("c", 90)]
LAYOUT = Layout.of(REGIONS, 6)
CHIP = Chip(Combined(parts=(Stuck(ber=0.2), Flip(ber=0.2))), 7)
STORED = packed(CHIP.faults.cells(LAYOUT, 7, CPU))


def by_tensor(faults: FaultyCells, layout: Layout) -> dict[str, list[int]]:
    """Cells of each tensor counted from its start, and what each does."""
    edges = [(region.name, region.start * layout.bits, region.words * layout.bits) for region in layout.regions]
    packed = {name: [] for name, _, _ in edges}
    for cell, keeps, flips in zip(faults.cell.tolist(), faults.keeps.tolist(), faults.flips.tolist(), strict=True):
        name, start = next((name, start) for name, start, size in edges if start <= cell < start + size)
        packed[name].append((cell - start, keeps, flips))
    return packed


def same_chip(chip) -> bool:
    return chip.seed == 7 and np.array_equal(packed(chip.faults.cells(LAYOUT, 7, CPU)), STORED)


@pytest.mark.parametrize("what", ["map", "chip"])
def test_files_come_back_whole_or_are_refused(what, tmp_path):
    """Cut, or with one bit changed, at every second byte: what can be read is what was written."""
    file = tmp_path / "file.npz"
    KNOWN.save(file) if what == "map" else save_chip(file, CHIP, LAYOUT)
    load, same = {"map": (FaultMap.load, same_map), "chip": (load_chip, same_chip)}[what]
    assert same(load(file))
    whole = file.read_bytes()
    for place in range(0, len(whole), 2):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            file.write_bytes(damaged)
            with contextlib.suppress(FileFormatError):
                assert same(load(file))


@pytest.mark.parametrize("load", [FaultMap.load, load_chip])
def test_files_of_something_else_are_refused(load, tmp_path):
    other = tmp_path / "other.npz"
    save_chip(other, CHIP, LAYOUT) if load == FaultMap.load else KNOWN.save(other)
    for content, message in [
        (other.read_bytes(), "must be a whole file of schema|must have schema"),
        (None, "No such file"),
        (b"nothing", "must be a whole file of schema"),
        (in_bytes(np.save, GRID), "must be a whole file of schema"),
        (in_bytes(np.savez, GRID), "must be a whole file of schema"),
        (in_bytes(functools.partial(np.savez, header=np.array(Bomb(), object))), "allow_pickle=False"),
        (in_bytes(functools.partial(np.savez, header=np.array("[]"), cells=TWO, cell=TWO)), "must "),
    ]:
        file = tmp_path / "file.npz"
        file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            load(file)


def test_a_chip_on_disk_is_the_same_chip_in_any_order(tmp_path):
    save_chip(tmp_path / "chip.npz", CHIP, LAYOUT)
    chip = load_chip(tmp_path / "chip.npz")
    wanted = by_tensor(CHIP.faults.cells(LAYOUT, 7, CPU), LAYOUT)
    for names in (*itertools.permutations("abc"), "c", "ba", "ac"):
        layout = Layout.of([(name, dict(REGIONS)[name]) for name in names], 6)
        faults = chip.faults.cells(layout, 12345, CPU)
        assert (faults.cell.diff() > 0).all()
        assert by_tensor(faults, layout) == {name: wanted[name] for name in names}
    assert (chip.seed, chip.faults.ber) == (7, CHIP.faults.ber)
    assert json.loads(json.dumps(chip.faults.to_config()))["faults"]["kind"] == "combined"
    for layout, message in [
        (Layout.of(REGIONS, 8), "must have 8-bit words: it has 6-bit words"),
        (Layout.of([("a", 41)], 6), "must hold 41 words of 'a': it has 40"),
        (Layout.of([("d", 40)], 6), "must hold 40 words of 'd': it has none"),
    ]:
        with pytest.raises(ShapeError, match=message):
            chip.faults.cells(layout, 0, CPU)
    with pytest.raises(ConfigError, match="a saved chip has a fixed rate, .*: got ber=0.1"):
        chip.faults.at(0.1)


@pytest.mark.parametrize("name", ["keeps", "flips", "cell", "descending", "beyond", "numbers", "bits", "ber"])
def test_chips_that_cannot_be_are_refused(name, tmp_path):
    save_chip(tmp_path / "chip.npz", CHIP, LAYOUT)
    header, arrays = read_arrays(tmp_path / "chip.npz", "neuralfuse/chip/1", ["cell", "keeps", "flips"])
    if name in arrays:
        arrays[name] = arrays[name][:-1]
    elif name == "descending":
        arrays["cell"] = arrays["cell"][::-1]
    elif name == "beyond":
        arrays["cell"] = arrays["cell"] + LAYOUT.cells
    elif name == "numbers":
        arrays["keeps"] = arrays["keeps"] * 7
    else:
        header = header | ({"bits": None} if name == "bits" else {"faults": {"ber": 7}})
    write_arrays(tmp_path / "chip.npz", header, arrays)
    with pytest.raises(FileFormatError, match="chip.npz must hold"):
        load_chip(tmp_path / "chip.npz")


def test_a_measured_chip_reads_its_map(tmp_path):
    KNOWN.save(tmp_path / "known.npz")
    layout = Layout.of([("a", 3), ("b", 6)], 2)  # its three rows of a word each, three times over
    chip = Chip(fault_model("map", map=str(tmp_path / "known.npz"), voltage=0.5), 1)
    faults = chip.faults.cells(layout, chip.seed, CPU)
    assert faults.cell.tolist() == [start + cell for start in (0, 6, 12) for cell in (0, 1, 4, 5)]
    assert faults.keeps.tolist() == [True, False, True, False] * 3
    assert faults.flips.tolist() == [True, False, True, True] * 3
    assert torch.equal(chip.faults.cells(layout, 99, CPU).cell, faults.cell), "all seeds are the one chip"
    higher = chip.at(0.6).faults
    assert (higher.voltage, higher.ber, chip.faults.ber) == (0.6, 0.5, 4 / 6)
    assert higher.cells(layout, 1, CPU).cell.tolist() == [start + cell for start in (0, 6, 12) for cell in (1, 2, 4)]
    with pytest.raises(UnknownNameError, match="voltage must be one of the fault map's: got 0.7 V"):
        chip.at(0.7)
    with pytest.raises(ConfigError, match="needs a voltage, not a rate: got ber=0.1"):
        chip.faults.at(0.1)
    with pytest.raises(ConfigError, match="map must be a fault map or its NPZ file"):
        Measured(map=3)
