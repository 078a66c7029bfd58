"""The command line: what it prints, which code it exits with, and that a mistake costs one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from helpers.cli import fails
from helpers.commands import child_environment
from helpers.places import ROOT
from neuralfuse.cli.main import run

BASE = ["train-base", "--base", "resnet8", "--data", "digits", "--epochs", "1", "--batch", "64"]
TRAIN = ["train", "--generator", "unets", "--ber", "0.05", "--max-steps", "4", "--n-chips", "2"]
TRAIN += ["--validation-chips", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base model and a NeuralFuse, trained as a user would, a little."""
    folder = tmp_path_factory.mktemp("trained")
    assert run([*BASE, "--out", str(folder / "base")]) == 0
    assert run([*TRAIN, "--base", str(folder / "base"), "--out", str(folder / "fuse")]) == 0
    return folder


def test_models_lists_networks(capsys):
    assert run(["models", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "neuralfuse/models/1"
    assert {"name": "convl", "parameters": 723_273} in record["generators"]
    assert run(["models"]) == 0
    assert "11,173,962" in capsys.readouterr().out


def test_a_module_starts_from_another(trained, capsys, tmp_path):
    start = tmp_path / "start"
    assert run(["pretrain", "--generator", "unets", "--data", "digits", "--epochs", "2", "--out", str(start)]) == 0
    assert "unets classifies " in capsys.readouterr().out
    config = json.loads((start / "config.json").read_text())
    assert config["trained"]["task"] == "classes"
    own = [*TRAIN, "--base", str(trained / "base"), "--out", str(tmp_path / "fuse"), "--class-head", "1"]
    assert run([*own, "--start", str(start)]) == 0
    trained_on = json.loads((tmp_path / "fuse" / "config.json").read_text())["trained"]
    assert trained_on["start"]["accuracy"] == config["trained"]["accuracy"]
    assert trained_on["class_head"] == 1.0
    capsys.readouterr()
    other = ["convs" if word == "unets" else word for word in own]
    fails(capsys, [*other, "--start", str(start)], "must hold convs for 1 channels: got unets for 1 channels")
    fails(capsys, [*own, "--start", str(tmp_path)], "config.json")


def test_the_whole_path(trained, capsys, tmp_path):
    capsys.readouterr()
    out = tmp_path / "record.json"
    command = ["evaluate", str(trained / "fuse"), "--base", str(trained / "base"), "--ber", "0.05", "--chips", "3"]
    assert run([*command, "--out", str(out), "--json"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert json.loads(out.read_text()) == record
    assert record["chips"] == 3
    assert record["config"]["fuse"]["bases"][0]["name"] == "resnet8"
    assert record["config"]["fuse"]["bases"][0]["fingerprint"] == record["config"]["base"]["fingerprint"]
    assert "chip 3 of 3" in shown.err
    assert run(command[:1] + command[2:]) == 0
    assert "3 unseen chips" in capsys.readouterr().out


def test_running_options_and_an_early_stop_are_recorded(trained, capsys):
    command = ["evaluate", str(trained / "fuse"), "--base", str(trained / "base"), "--ber", "0.05", "--json"]
    capsys.readouterr()
    assert run([*command, "--until", "99", "--autocast", "bf16", "--micro-batch", "50", "--no-fold"]) == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert (record["chips"], record["config"]["until"], record["config"]["base"]["autocast"]) == (5, 99.0, "bf16")
    assert record["config"]["chips"]["count"] == 30 and "chip 5 of 30" in shown.err
    assert record["run"]["peak_memory_bytes"] > 1 << 27


def test_storage_options_change_what_is_stored(trained, capsys):
    command = ["evaluate", "--base", str(trained / "base"), "--ber", "0.01", "--chips", "1", "--json"]
    assert run([*command, "--bits", "4", "--rounding", "floor"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["config"]["base"]["scheme"]["bits"] == 4
    assert record["config"]["base"]["scheme"]["rounding"] == "floor"


def test_an_ensemble_trains(trained, tmp_path, capsys):
    bases = ["--base", str(trained / "base"), "--base", str(trained / "base")]
    assert run([*TRAIN, *bases, "--out", str(tmp_path / "fuse"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["config"]["bases"]) == 2


def test_a_user_s_own_factory(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def net(classes):\n"
        "    line = nn.utils.skip_init(nn.Linear, 64, classes)\n"
        "    for parameter in line.parameters():\n        nn.init.constant_(parameter, 0.1)\n"
        "    return nn.Sequential(nn.Flatten(), line)\n"
        "def make():\n    return net(10)\n"
        "def wrong():\n    return 7\n"
        "def five():\n    return net(5)\n"
        "def broken():\n    raise RuntimeError('no weights here')\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "--ber", "0.01", "--chips", "1"]
    assert run([*command, "--base", "own_nets:make", "--input-range", "unit", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["config"]["base"]["name"] == "own_nets:make"
    assert record["config"]["base"]["input_range"] == {"mean": [0.0], "std": [1.0]}
    fails(capsys, [*command, "--base", "own_nets:wrong"], "must return an nn.Module: got int")
    fails(capsys, [*command, "--base", "own_nets:five"], "must return 10 logits per image")
    fails(capsys, [*command, "--base", "own_nets:broken"], "no weights here")
    fails(capsys, [*command, "--base", "own_nets:make", "--input-range", "imagenet"], "1 or 1 means")
    fails(
        capsys,
        [*command, "--base", "own_nets:make", "--image-size", "9", "9"],
        "must accept images of 1 channels and 9x9",
    )
    fails(capsys, [*command, "--base", "own_nets:nothing"], "must be importable as package.module:name", "nothing")
    missing = "no_such_module:make"
    fails(capsys, [*command, "--base", missing], "must be importable as package.module:name", missing)


def test_a_config_file_sets_options_and_flags_override_it(trained, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(f'[evaluate]\nbase = "{trained / "base"}"\nber = 0.02\nchips = 2\nfaults = "flip"\n')
    assert run(["evaluate", "--config", str(config), "--chips", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["ber"], record["chips"], record["ber_kind"]) == (0.02, 1, "flip")
    config.write_text("[evaluate]\nbers = 0.02\n")
    fails(capsys, ["evaluate", "--config", str(config)], "Unknown option", "bers", "run.toml")
    config.write_text("[evaluatee]\nber = 0.02\n")
    fails(capsys, ["models", "--config", str(config)], "unknown table", "Did you mean 'evaluate'")
    config.write_text("json = true\n")
    fails(capsys, ["models", "--config", str(config)], "unknown table", "json")
    config.write_text("evaluate = 3\n")
    fails(capsys, ["models", "--config", str(config)], "must be a table")
    config.write_text("[evaluate\n")
    fails(capsys, ["evaluate", "--config", str(config)], "run.toml")
    fails(capsys, ["evaluate", "--config", str(tmp_path / "none.toml")], "--config must name a TOML file")


def test_a_recipe_sets_defaults_below_flags(tmp_path, capsys):
    command = [*BASE[:5], "--recipe", "paper", "--epochs", "1", "--out", str(tmp_path / "base"), "--json"]
    assert run(command) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["epochs"], config["batch"], config["lr"], config["schedule"]) == (1, 256, 0.001, "constant")
    fails(capsys, [*BASE, "--recipe", "papers", "--out", "x"], "Did you mean 'paper'")
    file = tmp_path / "recipe.toml"
    file.write_text('[train-base]\nrecipe = "paper"\nbatch = 300\n')
    assert run([*command[:5], "--epochs", "1", "--out", str(tmp_path / "again"), "--json", "--config", str(file)]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["batch"], config["lr"], config["nesterov"], config["augment"]) == (300, 0.001, False, "paper")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["trian"], ["Did you mean", "train"]),
        (["train", "--base", "x", "--out", "y", "--bre", "0.1"], ["Did you mean --ber"]),
        (["train", "--base", "x", "--out", "y"], ["--ber"]),
        (["train", "--base", "x", "--out", "y", "--ber", "1%"], ["--ber"]),
        (["train", "--base", "x", "--out", "y", "--ber", "12.5"], ["ber must be in [0, 1]: got ber=12.5", "percent"]),
        (["evaluate", "--base", "x", "--ber", "-1"], ["ber must be in [0, 1]: got ber=-1.0"]),
        (["evaluate", "--base", "x", "--ber", "0.1", "--faults", "stock"], ["Did you mean 'stuck'"]),
        (["train", "--base", "x", "--out", "y", "--ber", "0.1", "--faults", "flop"], ["Did you mean 'flip'"]),
        (["evaluate", "--base", "resnet8", "--ber", "0.1"], ["resnet8 is only a name", "train-base"]),
        (["evaluate", "--base", "resnet9", "--ber", "0.1"], ["Did you mean 'resnet8'"]),
        (["evaluate", "--base", "no/folder", "--ber", "0.1"], ["must be a folder written by train-base"]),
        (["evaluate", "--base", "x", "--ber", "0.1", "--resume"], ["--resume must come with --out"]),
        (["evaluate", "--base", "x", "--ber", "0.1", "--threads", "0"], ["threads must be at least 1"]),
        (["evaluate", "--base", "x", "--ber", "0.1", "--device", "tpu9"], ["device must be one that torch can use"]),
        (["evaluate", "--base", "x", "--ber", "0.1", "--micro-batch", "-2"], ["micro_batch must be at least 0"]),
        (["evaluate", "--base", "x", "--ber", "0.1", "--autocast", "fp61"], ["fp16"]),
        (["train-base", "--base", "resnet8", "--out", "x", "--data", "digit"], ["Did you mean 'digits'"]),
        (["train-base", "--base", "vgg11", "--out", "x", "--data", "digits"], ["at least 32x32", "--image-size"]),
        (["train-base", "--base", "resnet88", "--out", "x"], ["Did you mean 'resnet8'"]),
        (["train-base", "--base", "resnet8", "--out", "x", "--lr", "-1"], ["lr must be positive"]),
        (["train-base", "--base", "resnet8", "--out", "x", "--optimizer", "sdg"], ["sgd"]),
        (["train-base", "--base", "resnet8", "--out", "x", "--data", "folder"], ["needs --data-dir"]),
    ],
)
def test_a_mistake_costs_one_line(arguments, texts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, arguments, *texts)
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_fit_are_refused(trained, capsys, tmp_path):
    base, fuse = str(trained / "base"), str(trained / "fuse")
    fails(capsys, ["evaluate", base, "--base", base, "--ber", "0.1"], "must have schema 'neuralfuse/module/1'")
    fails(capsys, ["evaluate", fuse, "--base", fuse, "--ber", "0.1"], "must have schema 'neuralfuse/base/1'")
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8)).save(tmp_path / part / name / f"{index}.png")
    folder = ["--data", "folder", "--data-dir", str(tmp_path)]
    fails(capsys, ["evaluate", "--base", base, "--ber", "0.1", *folder], "same number of classes: got 10 and 2")
    (tmp_path / "file").write_text("")
    out = ["--out", str(tmp_path / "file" / "x.json")]
    fails(capsys, ["evaluate", "--base", base, "--ber", "0.1", "--chips", "1", *out], "cannot write")
    fails(capsys, [*BASE, "--out", str(tmp_path / "file" / "x")], "cannot write")
    fails(capsys, ["evaluate", "--base", base, "--ber", "0.1", "--include", "layer9.*"], "match none of the parameters")
    tensorboard = ["--tensorboard", str(tmp_path / "file" / "x"), "--out", str(tmp_path / "base")]
    fails(capsys, [*BASE, *tensorboard], "--tensorboard")
    reference = ["--faults", "reference", "--bits", "12"]
    fails(capsys, ["evaluate", "--base", base, "--ber", "0.1", *reference], "bits must be at most 8")


def test_a_diverging_run_costs_one_line(capsys, tmp_path):
    assert run([*BASE, "--lr", "1e30", "--out", str(tmp_path)]) == 2
    assert "loss became" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "model.safetensors").exists()


def test_debug_shows_the_traceback(capsys):
    assert run(["evaluate", "--base", "x", "--ber", "7", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_our_failure_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr("neuralfuse.nets.catalogue", lambda: 1 / 0)
    assert run(["models"]) == 1
    assert "internal error: ZeroDivisionError" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("neuralfuse.nets.catalogue", interrupt)
    assert run(["models"]) == 130
    assert capsys.readouterr().err == "neuralfuse: interrupted.\n"


HELP = """
import contextlib, io, json, sys
from neuralfuse.cli.main import run
shown = {}
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run([*command, "--help"])
    shown[" ".join(command)] = [code, not {"torch", "starlette"}.isdisjoint(sys.modules), out.getvalue()]
print(json.dumps(shown))
"""


def test_help_has_an_example_and_starts_without_torch():
    """In a process of its own, for any torch that was imported would stay."""
    commands = [[], ["demo"], ["models"], ["train-base"], ["train"], ["evaluate"], ["serve"]]
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(commands)],
        capture_output=True, text=True, cwd=ROOT, env=child_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert len(shown) == len(commands)
    for command, (code, with_more, text) in shown.items():
        assert (code, with_more) == (0, False), command
        if command:
            assert f"Example: neuralfuse {command}" in text
            assert "--json" in text
        else:
            assert "neuralfuse demo" in text
