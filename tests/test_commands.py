"""A record names the command that made it, and that command makes it again."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from neuralfuse.cli.main import run
from neuralfuse.data import load_data
from neuralfuse.evaluation import evaluation_text
from neuralfuse.faults import Stuck
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets import DeployedBase, load_base
from neuralfuse.pipeline import make_evaluation
from neuralfuse.runs import command, given_command

BEFORE = Path(__file__).parent / "before"
BOX = """
import numpy as np
weights = np.random.RandomState(0).randn(64, 10)
def model(x):
    return x.reshape(len(x), -1) @ weights
"""
KINDS = {
    "evaluation": "evaluate fuse --base base --ber 0.02 --chips 3 --input-range symmetric --out out/record.json",
    "training of a base model": "train-base --base vgg11-tiny@2 --epochs 1 --batch 64 --seed 3 --out out",
    "training": "train --base base --generator uip --ber 0.02 --max-steps 3 --batch 16 --n-chips 1 --out out",
    "comparison": "compare none protected-bits --scale tiny.toml --data GTSRB --base VGG11 --rates 0.02 --faults stuck "
    "--chips 2 --workers 0 --out out",
    "table": "reproduce table11 --scale tiny.toml --rows base=ResNet18 --rows generator=UIP --rows ber=0.01 "
    "--workers 0 --out out",
    "plan": "plan --base base --fuse fuse --target 20 --voltages 1 --voltages 0.82 --chips 4 --images 50 --out out",
    "portrait": "portrait fuse --base base --ber 0.02 --chips 2 --images 40 --gallery 2 --out out/portrait.json",
    "black box": "evaluate fuse --base call:box:model --images 20 --out out/record.json",
    "choice": "choose fuse other --base call:box:model --images 32 --out out/choice.json",
    "tuning": "tune fuse --base call:box:model --queries 300 --judged 20 --step-images 10 --images 60 --out out",
}
MADE = {"plan": "plan.json", "table": "table11-*.json", "tuning": "tuning.json", "training": "training.json",
        "training of a base model": "training.json"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_in_a_record_makes_it_again(kind, tmp_path, monkeypatch):
    for name in ("base", "fuse", "tiny.toml"):
        (shutil.copytree if (BEFORE / name).is_dir() else shutil.copy)(BEFORE / name, tmp_path / name)
    shutil.copytree(BEFORE / "fuse", tmp_path / "other")
    (tmp_path / "box.py").write_text(BOX)
    monkeypatch.chdir(tmp_path)

    def made(tokens: list[str]) -> dict:
        shutil.rmtree("out", ignore_errors=True)
        assert run(tokens) == 0
        (path,) = Path("out").glob(MADE.get(kind, "*.json"))
        return json.loads(path.read_text())

    first = made(KINDS[kind].split())
    assert first["run"]["command"] == f"neuralfuse {KINDS[kind]}"
    again = made(shlex.split(first["run"]["command"])[1:])
    assert again.pop("run")["command"] == first.pop("run")["command"]
    assert again == first


def test_secrets_are_left_out_and_odd_arguments_are_quoted():
    given = ["evaluate", "a folder", "--base", "https://me:wo@rd@host/v2/models/net?sig=a b&x=1#auth", "--out", "it's"]
    with given_command(given):
        text = command()["command"]
    assert shlex.split(text)[1:] == [*given[:3], "https://host/v2/models/net?sig=...&x=...#auth", *given[4:]]
    assert "word" not in text and "abc" not in text
    assert command() == {}


def test_what_python_made_has_no_command():
    base = DeployedBase.of(load_base(BEFORE / "base"))
    fuse = NeuralFuse.from_pretrained(BEFORE / "fuse")
    record = make_evaluation(fuse, base, load_data("digits"), Stuck(ber=0.02), chips=1)
    assert "command" not in record["run"] and "PA(NF)" in evaluation_text(record)
