"""A store, records and interrupted runs of an earlier version are read and gone on from; see tests/before/README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from neuralfuse.cli.main import run
from neuralfuse.files import read_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed
from neuralfuse.nets import load_base

BEFORE = Path(__file__).parent / "before"
COMPARE = (
    "compare none protected-bits:bits=2 uip+reestimate:images=20 --scale tiny.toml --data GTSRB --base VGG11 "
    "--rates 0.02 --faults stuck --train-rate 0.02 --chips 3 --out store --workers 0 --threads 1"
)
TABLE = (
    "reproduce table11 --scale tiny.toml --rows base=ResNet18 --rows generator=UIP --rows ber=0.01 --out store "
    "--workers 0 --threads 1"
)


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    """A copy of the files, as the working folder."""
    folder = tmp_path / "before"
    shutil.copytree(BEFORE, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("command", [COMPARE, TABLE])
def test_finished_steps_of_a_store_keep_their_addresses(command, before, capsys):
    records = {path: path.read_bytes() for path in before.glob("store/steps/*/step.json")}
    (old,) = before.glob("store/comparison-*.json" if command is COMPARE else "store/table11-*.json")
    kept = json.loads(old.read_text())
    assert run([*command.split(), "--status"]) == 0
    assert " 0 running, 0 failed, 0 waiting" in capsys.readouterr().out
    assert run(command.split()) == 0
    assert {path: path.read_bytes() for path in before.glob("store/steps/*/step.json")} == records, (
        "nothing is done anew"
    )
    made = json.loads(old.read_text())
    assert made["steps"] == kept["steps"]
    for row, other in zip(made["rows"], kept["rows"], strict=True):
        measured = other["measured"] and {key: value for key, value in other["measured"].items() if key != "time"}
        assert (row["step"], row["measured"]) == (other["step"], measured)


def test_an_interrupted_evaluation_is_resumed(before, monkeypatch):
    kept = read_json(before / "cut" / ".record.json.partial")["per_chip"]
    asked, original = [], Deployed.perturbed
    monkeypatch.setattr(Deployed, "perturbed", lambda self, chip: asked.append(chip.seed) or original(self, chip))
    command = "evaluate fuse --base base --ber 0.02 --chips 4 --threads 1 --out cut/record.json --resume"
    assert run(command.split()) == 0
    record = read_json(before / "cut" / "record.json")
    assert record["per_chip"][: len(kept)] == kept and 0 < len(kept) < 4
    assert len(record["per_chip"]) == 4 and not {chip["seed"] for chip in kept} & set(asked)


def test_an_interrupted_plan_is_resumed(before, monkeypatch):
    known = read_json(before / "cut" / "plan" / ".plan.partial")["known"]
    asked, original = [], Deployed.perturbed
    monkeypatch.setattr(Deployed, "perturbed", lambda self, chip: asked.append(chip.seed) or original(self, chip))
    command = (
        "plan --base base --fuse fuse --target 20 --voltages 1 --voltages 0.82 --chips 12 --images 50 --protect 2 "
        "--threads 1 --out cut/plan --resume"
    )
    assert run(command.split()) == 0
    options = {one["name"]: one for one in read_json(before / "cut" / "plan" / "plan.json")["options"] if one["ber"]}
    for name, place in (("no protection", 0), ("fuse", 1)):
        assert options[name]["accuracies"][:10] == known["0.82 Vmin"][place][:10]
    done = sum(len(own[0]) for own in known.values()) - 1  # without errors there is no chip
    assert len([seed for seed in asked if seed < 50_000]) == 24 - done


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        (
            "base",
            "train-base --base vgg11-tiny@2 --epochs 4 --batch 64 --ber 0.02 --faults stuck --clip 0.5 "
            "--validate-every 10",
        ),
        (
            "fuse",
            "train --base base --generator uip --ber 0.02 --faults stuck --epochs 1 --max-steps 8 --batch 16 "
            "--n-chips 2 --validate-every 2 --validation-chips 1",
        ),
    ],
)
def test_an_interrupted_training_is_resumed(folder, command, before, capsys):
    out = before / "cut" / folder
    assert run([*command.split(), "--threads", "1", "--out", str(out), "--resume"]) == 0
    told = capsys.readouterr().err
    assert "step 10:" not in told and "step 2:" not in told, "steps before the checkpoint are not done again"
    config = read_json(out / "training.json")["config"]
    assert (config["ber"], config["faults"]) == (0.02, "stuck")
    assert (load_base if folder == "base" else NeuralFuse.from_pretrained)(out) is not None


def test_a_report_shows_records_of_before(before):
    assert run(["report", "store", "--out", "page.html"]) == 0
    page = (before / "page.html").read_text()
    assert "protected-bits:bits=2" in page and "UIP" in page
