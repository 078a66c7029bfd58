"""The `chip` commands and the options that say which cells fail: voltages, files, maps, remedies."""

from __future__ import annotations

import json
import re
import tomllib

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.cli import fails
from helpers.places import ROOT
from neuralfuse.cli.main import run
from neuralfuse.evaluation.measure import generator_chip
from neuralfuse.faults import Chip, FaultMap, Layout, Measured, Stuck, default_curve, from_config
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.memory.audit import changes, summarize
from neuralfuse.nets import BaseModel, base_model, load_base, save_base
from neuralfuse.quant import Scheme
from neuralfuse.ranges import InputRange


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model and a NeuralFuse, not trained."""
    made = tmp_path_factory.mktemp("models")
    size = {"channels": 1, "image_size": (8, 8)}
    module = base_model("resnet8", classes=10, seed=1, **size)
    facts = {"scheme": Scheme(), "input_range": InputRange(), "trained": {}}
    save_base(BaseModel(name="resnet8", module=module, classes=10, **size, **facts), made / "base")
    NeuralFuse("unets", **size, input_range=InputRange(), seed=2).save_pretrained(made / "fuse")
    return made


def shown(capsys, arguments):
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_saved_chip_is_the_chip(folder, capsys, tmp_path):
    base = ["--base", str(folder / "base")]
    chip = ["--faults", "stuck", "--ber", "0.02", "--seed", "7"]
    shown(capsys, ["chip", "new", *base, *chip, "--out", str(tmp_path / "chip.npz")])
    made = shown(capsys, ["chip", "show", *base, *chip, "--list-bits", "40"])
    saved = shown(capsys, ["chip", "show", str(tmp_path / "chip.npz"), *base, "--list-bits", "40"])
    assert made.pop("faults")["ber"] == saved.pop("faults")["ber"] == 0.02
    assert made == saved
    assert made["chip"] == "stuck, seed 7"
    assert len(made["changes"]) == 40
    record = shown(capsys, ["evaluate", *base, "--faults", str(tmp_path / "chip.npz")])
    assert record["chips"] == 1
    assert record["per_chip"][0]["changed_bits"] == made["changed_bits"]
    assert run(["chip", "show", *base, *chip, "--list-bits", "3"]) == 0
    assert "conv1.weight" in capsys.readouterr().out


def test_the_listed_changes_are_those_of_the_memory(folder):
    memory = deploy(load_base(folder / "base").module).memory
    from neuralfuse.faults import Chip

    chip = Chip(Stuck(ber=0.03), 4)
    reading = memory.read(chip)
    read = memory.split(memory.codes.index_copy(0, reading.index, reading.codes))
    values = memory.split(memory.values.index_copy(0, reading.index, reading.values))
    clean = memory.split(memory.values)
    rows = list(changes(memory, reading))
    assert len(rows) == round(reading.changed_bits * memory.layout.cells)
    seen: dict[tuple, int] = {}
    for row in rows:
        place = tuple(row["index"])
        stored = int(memory.codes_of(row["layer"])[place])
        assert (row["code_before"], row["code_after"]) == (stored, int(read[row["layer"]][place]))
        assert (row["value_before"], row["value_after"]) == (clean[row["layer"]][place], values[row["layer"]][place])
        bits = [code >> row["bit"] & 1 for code in (stored, row["code_after"])]
        assert row["direction"] == f"{bits[0]}->{bits[1]}"
        assert bits[0] != bits[1]
        seen[(row["layer"], *place, row["bit"])] = seen.get((row["layer"], *place, row["bit"]), 0) + 1
    assert set(seen.values()) == {1}
    record = summarize(memory, chip)
    assert sum(layer["changed_bits"] for layer in record["layers"]) == len(rows)
    assert sum(bit["zero_to_one"] + bit["one_to_zero"] for bit in record["bits"]) == len(rows)
    assert sum(layer["faulty_cells"] for layer in record["layers"]) == record["faulty_cells"]
    assert sum(bit["faulty_cells"] for bit in record["bits"]) == record["faulty_cells"]
    largest = max(abs(row["value_after"] - row["value_before"]) for row in rows)
    assert max(layer["largest_change"] for layer in record["layers"]) == pytest.approx(largest)


def test_maps_are_made_imported_shown_drawn_and_used(folder, capsys, tmp_path):
    made = tmp_path / "map.npz"
    arguments = ["--faults", "clusters", "--voltages", "0.85", "--voltages", "0.82", "--rows", "64", "--columns", "32"]
    shown(capsys, ["chip", "new", *arguments, "--banks", "3", "--out", str(made)])
    fault_map = FaultMap.load(made)
    assert fault_map.synthetic
    assert fault_map.unit == "Vmin"
    assert fault_map.voltages == (0.85, 0.82)
    assert fault_map.cells.shape == (2, 3, 64, 32)

    np.save(tmp_path / "faulty.npy", fault_map.cells[1, 0] > 0)
    source = ["--source", "bench 7", "--voltages", "0.6"]
    imported = ["chip", "import", str(tmp_path / "faulty.npy"), *source, "--out", str(tmp_path / "own.npz")]
    record = shown(capsys, [*imported, "--reads", "flip"])
    assert not record["synthetic"]
    assert record["rates"][0]["inverts"] == record["rates"][0]["faulty"] == fault_map.cells[1, 0].astype(bool).mean()
    assert shown(capsys, ["chip", "show", str(tmp_path / "own.npz")])["source"] == "bench 7"

    for name, command in {
        "map.png": ["chip", "draw", str(made)],
        "voltage.svg": ["chip", "draw", str(made), "--voltage", "0.82"],
        "model.png": ["chip", "draw", "--base", str(folder / "base"), "--ber", "0.01"],
        "both.svg": ["chip", "draw", str(made), "--base", str(folder / "base"), "--voltage", "0.82"],
    }.items():
        assert run([*command, "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 3000

    base = ["evaluate", "--base", str(folder / "base"), "--faults", str(made), "--voltage", "0.82"]
    record = shown(capsys, [*base, "--chips", "1"])
    assert record["config"]["faults"]["map"]["synthetic"]
    assert record["chips"] == 1
    assert record["ber"] == pytest.approx(fault_map.rate(0.82))
    record = shown(capsys, [*base, "--chips", "3", "--mapping", "row-interleaved"])
    assert record["config"]["faults"]["mapping"]["order"] == "interleaved"
    assert record["config"]["faults"]["random_offset"]
    assert len({chip["changed_bits"] for chip in record["per_chip"]}) > 1


def test_a_voltage_stands_for_a_rate(folder, capsys, tmp_path):
    base = ["evaluate", "--base", str(folder / "base"), "--chips", "1"]
    record = shown(capsys, [*base, "--voltage", "0.83"])
    assert record["ber"] == pytest.approx(0.01)
    assert record["config"]["operating_point"]["curve"]["model"]
    (tmp_path / "curve.csv").write_text("# source: bench 7\n# unit: V\nvoltage,ber\n0.6,0.04\n0.8,0.0004\n")
    record = shown(capsys, [*base, "--voltage", "0.7", "--curve", str(tmp_path / "curve.csv")])
    assert record["ber"] == pytest.approx(0.004)
    assert record["config"]["operating_point"]["curve"]["source"] == "bench 7"
    assert run([*base, "--voltage", "0.7", "--curve", str(tmp_path / "curve.csv")]) == 0
    assert "at 0.7 V, by a curve: bench 7" in capsys.readouterr().out


def test_training_at_a_voltage_is_training_at_its_rate(folder, capsys, tmp_path):
    command = ["train", "--base", str(folder / "base"), "--generator", "unets", "--epochs", "1", "--n-chips", "1"]
    command += ["--validation-chips", "1", "--validation-images", "50", "--voltage", "0.81"]
    record = shown(capsys, [*command, "--out", str(tmp_path / "fuse")])
    assert record["config"]["ber"] == default_curve().ber(0.81)
    assert record["config"]["fault_model"]["kind"] == "stuck"


def test_asymmetric_faults_at_a_voltage_have_the_curve_s_share_of_faulty_cells(folder, capsys, tmp_path):
    (tmp_path / "one-way.toml").write_text('kind = "asymmetric"\nber = 0.0\nzero_to_one = 1.0\n')
    base = ["--base", str(folder / "base"), "--faults", str(tmp_path / "one-way.toml"), "--voltage", "0.83"]
    record = shown(capsys, ["chip", "show", *base])
    low, high = stats.binom.interval(1 - 1e-7, record["cells"], 0.01)
    assert low <= record["faulty_cells"] <= high
    assert shown(capsys, ["evaluate", *base, "--chips", "1"])["ber"] == pytest.approx(0.005)


def test_an_offset_keeps_the_mapping(folder, capsys):
    base = ["evaluate", "--base", str(folder / "base"), "--faults", "reference", "--ber", "0.01", "--chips", "1"]
    mapping = shown(capsys, [*base, "--offset", "16"])["config"]["faults"]["mapping"]
    assert mapping == shown(capsys, base)["config"]["faults"]["mapping"] | {"offset": 16}


def test_a_map_names_no_curve_and_its_generator_lies_behind_the_model(folder, capsys, tmp_path):
    made = tmp_path / "map.npz"
    shown(capsys, ["chip", "new", "--faults", "stuck", "--voltages", "0.82", "--columns", "32", "--out", str(made)])
    (tmp_path / "map.toml").write_text(f'kind = "map"\nmap = "{made}"\nvoltage = 0.82\n')
    for faults in (made, tmp_path / "map.toml"):
        options = ["--base", str(folder / "base"), "--faults", str(faults), "--voltage", "0.82", "--chips", "1"]
        assert shown(capsys, ["evaluate", *options])["config"]["operating_point"]["curve"] is None
    base = deploy(load_base(folder / "base").module)
    fuse = deploy(NeuralFuse.from_pretrained(folder / "fuse"))
    faults = Measured(map=FaultMap.load(made), mapping="linear")
    behind = generator_chip(Chip(faults, 0), base).faults.cells(fuse.memory.layout, 0, torch.device("cpu")).cell
    both = Layout.of([("base", base.memory.layout.words), ("fuse", fuse.memory.layout.words)], 8)
    cells = faults.cells(both, 0, torch.device("cpu")).cell - base.memory.layout.cells
    assert torch.equal(behind, cells[cells >= 0])
    fails(capsys, ["evaluate", *options, "--published-chips"], "published chips must have faults drawn by seed")


def test_a_file_describes_composed_faults(folder, capsys, tmp_path):
    spec = tmp_path / "faults.toml"
    spec.write_text(
        'kind = "combined"\n[[parts]]\nkind = "bit-rates"\nshares = [1, 1, 1, 1, 1, 1, 0, 0]\n'
        'faults = {kind = "stuck", ber = 0.02}\n[[parts]]\nkind = "transient"\nfaults = {kind = "flip", ber = 0.001}\n'
    )
    base = ["evaluate", "--base", str(folder / "base"), "--chips", "2", "--faults", str(spec)]
    record = shown(capsys, base)
    assert record["ber_kind"] == "combined"
    assert record["ber"] == pytest.approx(1 - (1 - 0.02 * 6 / 8) * 0.999)
    assert shown(capsys, [*base, "--ber", "0.1"])["ber"] == pytest.approx(0.1)
    again = tmp_path / "faults.json"
    again.write_text(json.dumps(record["config"]["faults"]))
    repeated = shown(capsys, [*base[:-1], str(again)])
    assert repeated["per_chip"] == record["per_chip"]


def test_remedies_words_and_the_generator_s_own_memory(folder, capsys):
    base = ["evaluate", str(folder / "fuse"), "--base", str(folder / "base"), "--ber", "0.02", "--chips", "1"]
    plain = shown(capsys, base)
    assert "readout" not in plain["config"]["base"]
    corrected = shown(capsys, [*base, "--readout", "secded"])
    assert corrected["config"]["base"]["readout"]["overhead"] == pytest.approx(0.125, rel=0.01)
    assert corrected["changed_bits"] < plain["changed_bits"]
    floats = shown(capsys, [*base, "--coding", "bf16"])
    assert floats["config"]["base"]["scheme"] == {"bits": 16, "coding": "bf16"}
    assert floats["per_chip"][0]["not_finite"] > 0
    assert shown(capsys, [*base, "--activations"])["config"]["base"]["activations"]["inputs"]
    faulty = shown(capsys, [*base, "--faulty-generator"])
    assert faulty["config"]["generator_memory"]["scheme"]["bits"] == 8
    assert faulty["per_chip"][0]["pa"] == plain["per_chip"][0]["pa"]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ["one of --ber and --voltage must be given", "got neither"]),
        (["--ber", "0.1", "--voltage", "0.9"], ["got both"]),
        (["--voltage", "0.5"], ["voltage must be on the curve, in [0.8, 1] Vmin: got 0.5", "--curve"]),
        (["--voltage", "0.9", "--curve", "nowhere.csv"], ["cannot read the voltage curve nowhere.csv"]),
        (["--faults", "nowhere.npz"], ["nowhere.npz must be a whole file"]),
        (["--faults", "nowhere.toml"], ["cannot read nowhere.toml"]),
        (["--ber", "0.1", "--faults", "lines", "--mapping", "diagonal"], ["unknown mapping 'diagonal'", "linear"]),
        (["--ber", "0.1", "--faults", "bit-rates"], ["options of faults 'bit-rates' must be among", "ber"]),
        (["--ber", "0.1", "--mapping", "linear"], ["options of faults 'stuck' must be among", "mapping"]),
        (["--ber", "0.1", "--coding", "bf16", "--bits", "4"], ["--bits must be left out for --coding bf16"]),
        (["--ber", "0.1", "--faulty-generator"], ["--faulty-generator must come with"]),
        (["--ber", "0.1", "--curve", "nowhere.csv"], ["--curve must come with --voltage"]),
        (["--ber", "0.1", "--offset", "8"], ["--offset must come with faults in an array"]),
        (["--ber", "0.1", "--chips", "0"], ["chips must be in"]),
    ],
)
def test_mistakes_cost_one_line(arguments, texts, folder, capsys):
    fails(capsys, ["evaluate", "--base", str(folder / "base"), *arguments], *texts)


def test_a_chip_of_a_model_has_no_shape_of_its_own(folder, capsys, tmp_path):
    command = ["chip", "new", "--base", str(folder / "base"), "--faults", "lines", "--ber", "0.1"]
    fails(capsys, [*command, "--rows", "64", "--out", str(tmp_path / "a.npz")], "--rows, --columns and --banks")


@pytest.mark.parametrize(
    "extra", [["--mapping", "linear"], ["--offset", "3"], ["--readout", "secded"], ["--bits", "4"]]
)
def test_a_map_has_no_words(extra, capsys, tmp_path):
    command = ["chip", "new", "--faults", "stuck", "--ber", "0.1", "--out", str(tmp_path / "a.npz")]
    fails(capsys, [*command, *extra], "must be left out for a fault map")
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["new", "--ber", "0.1", "--out", "chip.txt"], ["--out must end in .npz: got chip.txt"]),
        (["new", "--ber", "0.1", "--voltages", "0.9", "--out", "chip.npz"], ["must be left out with --voltages"]),
        (["import", "nowhere.npy", "--source", "me", "--out", "chip.npz"], ["nowhere.npy must be a map of 0 and 1"]),
        (["import", "--source", "me", "--out", "chip.npz"], ["at least one fault map"]),
        (["show"], ["a fault map (NPZ) or --base must be given"]),
        (["draw", "--out", "chip.txt"], ["--out must end in .png, .svg, .pdf"]),
        (
            ["show", "--base", "nowhere", "--ber", "0.1", "--list-bits", "-5"],
            ["--list-bits must be at least 0"],
        ),
        (["show", "nowhere.npz"], ["nowhere.npz must be a whole file of schema 'neuralfuse/fault-map/1'"]),
    ],
)
def test_mistakes_with_chips_cost_one_line(arguments, texts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["chip", *arguments], *texts)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_of_faults_are_refused(folder, capsys, tmp_path):
    base = ["evaluate", "--base", str(folder / "base"), "--faults"]
    (tmp_path / "a.toml").write_text("kind = stuck")
    fails(capsys, [*base, str(tmp_path / "a.toml")], "must be TOML")
    (tmp_path / "b.toml").write_text("ber = 0.1")
    fails(capsys, [*base, str(tmp_path / "b.toml")], "a fault model must have a kind")
    (tmp_path / "c.npz").write_bytes(b"PK not a zip")
    fails(capsys, [*base, str(tmp_path / "c.npz")], "must be a whole file")
    torch.save({"a": 1}, tmp_path / "d.npz")
    fails(capsys, [*base, str(tmp_path / "d.npz")], "must be a whole file")


def test_the_page_about_faults_in_files_is_right():
    """Every example of docs/faults.md is a fault model, and comes back from its own description."""
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    kinds = set()
    for text in examples:
        model = from_config(tomllib.loads(text))
        assert from_config(json.loads(json.dumps(model.to_config()))) == model
        assert len(model.cells(Layout.of([("a", 200_000)], 8), 1, torch.device("cpu")).cell) > 0
        kinds.add(model.kind)
    assert kinds == {"stuck", "asymmetric", "lines", "clusters", "synthetic", "combined", "bit-rates", "one-chip"}
