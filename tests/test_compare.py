"""Comparisons: which steps they take, what they share, what a row says; one comparison from end to end."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from helpers.comparisons import QUICK, SMOKE
from helpers.places import ROOT
from helpers.toy import toy_data
from neuralfuse.cli.main import run
from neuralfuse.compare import USUAL, Comparison, as_latex, as_markdown, as_text, memory_energy
from neuralfuse.compare.best import LEVELS, Difference, best, combinations
from neuralfuse.compare.show import combination_lines
from neuralfuse.compare.steps import PARTIAL, ComparisonStep
from neuralfuse.config import QatConfig
from neuralfuse.data import load_data
from neuralfuse.errors import NeuralFuseError
from neuralfuse.evaluation import t_interval
from neuralfuse.faults import default_curve, fault_model
from neuralfuse.files import write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.methods import Method, needs, parse
from neuralfuse.nets import load_base, save_base
from neuralfuse.pipeline import make_base
from neuralfuse.published import Measurement
from neuralfuse.quant import Scheme
from neuralfuse.reproduce import Request
from neuralfuse.scoring import accuracy, plain_inputs
from neuralfuse.steps import Workspace, engine

FAULTS = ("stuck", "reference")


def steps(comparison: Comparison) -> dict[tuple[str, str], ComparisonStep]:
    return {(text, step.faults.kind): step for text, step in comparison.rows}


def test_a_neuralfuse_for_the_plain_model_is_the_one_of_the_paper_s_table():
    found = steps(replace(QUICK, methods=["convl"], faults=["reference"]))["convl", "reference"].protection.module
    of = Measurement(data="GTSRB", base="VGG11", sources=("VGG11",), generator="ConvL", train_ber=0.01, ber=0.01)
    assert found.address == Request(replace(SMOKE, rate_factor=1.0), "reference").evaluation(of).module.address


def test_what_does_not_depend_on_the_faults_is_trained_once():
    made = steps(replace(QUICK, methods=["weight-clipping", "randbet", "convl"], faults=["stuck", "flip"]))
    address = {key: step.protection.address for key, step in made.items()}
    assert address["weight-clipping", "stuck"] == address["weight-clipping", "flip"]
    assert address["randbet", "stuck"] != address["randbet", "flip"]
    assert address["convl", "stuck"] != address["convl", "flip"]


def test_methods_put_together_share_the_first_one():
    made = steps(replace(QUICK, methods=["randbet", "randbet+convl"]))
    both = made["randbet+convl", "flip"].protection
    assert both.before == made["randbet", "flip"].protection
    assert both.module is None and both.start is not None
    assert set(both.needs) < set(made["randbet+convl", "flip"].needs) > {both.before}
    plain = made["none", "flip"].protection
    assert plain.before is None and plain.needs == (QUICK.base_step,)


def test_a_method_on_top_of_neuralfuse_is_on_top_of_the_one_in_its_row():
    """Also where generators start from one that knows the classes, as they do at this scale."""
    made = steps(replace(QUICK, methods=["convl", "convl+batch-statistics", "uip"]))
    alone = made["convl", "flip"].protection
    assert made["convl+batch-statistics", "flip"].protection.before.address == alone.address
    assert alone.module.start is not None and made["uip", "flip"].protection.module.start is None


def test_the_energy_is_that_of_every_cell_at_its_voltage():
    curve = default_curve()
    low = curve.energy(curve.voltage(0.01))
    cost = {"accesses": 100.0, "added_accesses": 7.0, "hardened": 0.25, "overhead": 0.125, "passes": 5}
    cells = 5 * 100.0 * 1.125
    by_hand = (cells * 0.25 * 1.0 + cells * 0.75 * low + 7.0) / 80.0
    assert memory_energy(0.01, cost, 80.0) == pytest.approx(by_hand)
    assert memory_energy(0.06, cost, 80.0) is None  # beyond the curve nothing is said


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("compare"))
    with engine(workers=0, threads=1, scheduler=None) as on:
        work = QUICK.work(workspace)
        work.check(work.run(on, retries=0, say=lambda line: None))
    return workspace, QUICK.record(workspace)


def test_a_row_says_what_its_chips_say(made):
    _, record = made
    plain, batch, bits = record["rows"]
    assert [row["method"] for row in record["rows"]] == ["none", "batch-statistics", "protected-bits:bits=2"]
    gains = [
        one - other
        for one, other in zip(bits["measured"]["per_chip"]["pa"], plain["measured"]["per_chip"]["pa"], strict=True)
    ]
    assert bits["measured"]["gain"] == pytest.approx(sum(gains) / 3)
    assert bits["measured"]["gain_ci95"] == pytest.approx(list(t_interval(gains)))
    assert plain["measured"]["gain"] == 0.0
    seeds = [row["measured"]["per_chip"]["seed"] for row in record["rows"]]
    assert seeds[0] == seeds[1] == seeds[2]
    assert bits["measured"]["changed_bits"] < plain["measured"]["changed_bits"]
    assert batch["needs"] == ["statistics"] and plain["needs"] == []
    low = default_curve().energy(default_curve().voltage(0.01))
    assert plain["measured"]["energy"] == pytest.approx(low)
    assert bits["measured"]["energy"] == pytest.approx(0.25 + 0.75 * low)


@dataclass(frozen=True)
class Ballast(Method):
    """A user's own: hardware beside the model, which costs energy and changes no answer."""

    name: ClassVar[str] = "ballast"
    needs: ClassVar = ("inputs",)
    accesses: float = 1000.0

    def protect(self, made, setting):
        return made.answering(lambda answer: answer, accesses=self.accesses, parameters=11)


def test_a_user_s_own_hardware_is_in_its_row_s_energy(made):
    workspace, record = made
    comparison = replace(QUICK, methods=["test_compare:Ballast", "test_compare:Ballast:accesses=3000"])
    with engine(workers=0, threads=1, scheduler=None) as on:
        work = comparison.work(workspace)
        work.check(work.run(on, retries=0, say=lambda line: None))
    plain, one, three = (row["measured"] for row in comparison.record(workspace)["rows"])
    assert plain == record["rows"][0]["measured"]
    assert one["parameters"] == three["parameters"] == plain["parameters"] + 11
    assert one["per_chip"] == plain["per_chip"]
    accesses = workspace.store.record(QUICK.rows[0][1].protection.address)["result"]["accesses"]
    assert one["energy"] - plain["energy"] == pytest.approx(1000 / accesses)
    assert three["energy"] - plain["energy"] == pytest.approx(3000 / accesses)


def test_test_images_mix_the_classes(made):
    """A row's accuracies are those on the first test images of an order that does."""
    workspace, record = made
    whole = load_data("digits").test
    split = whole[whole.order("digits", "test images")[: SMOKE.test_images]]
    assert not torch.equal(split.labels, whole.labels[: len(split)])
    assert len(split.labels[:50].unique()) == 10
    base = QUICK.base_step.open(workspace).deployed
    x, measured = plain_inputs(split, base.input_range), record["rows"][0]["measured"]
    chips = [base.perturbed(chip) for chip in fault_model("flip", ber=0.01).chips(3)]
    assert measured["ca"] == accuracy(base, x, split.labels)
    assert measured["per_chip"]["pa"] == [accuracy(chip, x, split.labels) for chip in chips]


def test_an_interrupted_measurement_goes_on(made):
    workspace, record = made
    step = QUICK.rows[0][1]
    wanted = workspace.store.record(step.address)["result"]["per_chip"]
    path = workspace.store.folder(step.address) / PARTIAL
    first = {"seed": wanted["seed"][0], "pa": 12.5, "pa_nf": None, "changed_bits": 0.5, "not_finite": 0}
    write_json(path, {"schema": "neuralfuse/partial-comparison/1", "config": step.config(), "per_chip": [first]})
    result = step.perform(workspace)["per_chip"]
    path.unlink()
    assert result["pa"] == [12.5, *wanted["pa"][1:]]


def test_tables_in_three_forms(made):
    _, record = made
    text, latex = as_text(record), as_latex(record)
    assert "1% flip" in text and "protected-bits:bits=2" in text
    lines = as_markdown(record)
    assert lines[2].startswith("| rate | what is changed | best |") and "| method | needs | CA |" in "\n".join(lines)
    assert r"\toprule" in latex and r"1\% flip" in latex and latex.count(r"\\") == 3 + 4
    one = {**record, "rows": [{**row, "measured": {**row["measured"], "gain_ci95": None}} for row in record["rows"]]}
    assert "nan" not in as_text(one)
    waiting = QUICK.record(Workspace(made[0].root / "empty"))
    assert "3 of 3 rows are not measured yet" in as_text(waiting)
    assert all(row["measured"] is None for row in waiting["rows"])


def row(method: str, needs: list[str], accuracies: list[float], stage: str = "any") -> dict:
    measured = {"pa": sum(accuracies) / len(accuracies), "per_chip": {"pa": accuracies}}
    stages = [{"method": stage}]
    return {"method": method, "needs": needs, "stages": stages, "faults": "stuck", "ber": 0.01, "measured": measured}


def test_the_best_of_each_level_is_judged_by_pairs():
    rows = [
        row("none", [], [50.0, 60.0, 40.0]),
        row("convs", ["inputs", "gradients"], [60.0, 61.0, 50.0]),
        row("convl", ["inputs", "gradients"], [60.0, 66.0, 54.0]),
        row("batch-statistics", ["statistics"], [55.0, 65.0, 45.0]),
        row("randbet+convl", ["inputs", "gradients", "weights", "training"], [80.0, 90.0, 79.0]),
        row("protected-bits", ["memory"], [90.0, 90.0, 90.0]),
        row("mine", [], [99.0, 99.0, 99.0]) | {"measured": None},
        row("smaller", ["training", "weights"], [70.0, 70.0, 70.0], "smaller"),
    ]
    found = list(best({"rows": rows}, "stuck", 0.01))
    assert [(one.row["method"], one.above["method"]) for one in found] == [
        ("convl", "none"), ("batch-statistics", "convl"), ("randbet+convl", "convl"),
        ("protected-bits", "randbet+convl"), ("smaller", "protected-bits"),
    ]  # fmt: skip
    inputs, as_it_is = found[0], found[1]
    assert [one.level for one in found] == list(LEVELS)
    assert inputs.gain == inputs.more == Difference(10.0, t_interval([10.0, 6.0, 14.0]))
    assert as_it_is.gain.points == 5.0 and as_it_is.more == Difference(-5.0, t_interval([-5.0, -1.0, -9.0]))
    assert list(best({"rows": rows}, "flip", 0.01)) == []


def test_methods_put_together_are_judged_beside_each_alone():
    fused, statistics, fitted = {"method": "neuralfuse"}, {"method": "batch-statistics"}, {"method": "calibrate"}
    rows = [
        row("convl", [], [60.0, 66.0, 54.0]) | {"stages": [fused]},
        row("batch-statistics", [], [55.0, 65.0, 45.0]) | {"stages": [statistics]},
        row("convl+batch-statistics", [], [70.0, 70.0, 49.0]) | {"stages": [fused, statistics]},
        row("convl+calibrate", [], [90.0, 91.0, 80.0]) | {"stages": [fused, fitted]},
        row("convl+batch-statistics", [], [1.0, 2.0, 3.0]) | {"stages": [fused, statistics], "ber": 0.02},
    ]
    both, own = combinations({"rows": rows}, "stuck", 0.01)
    assert both.row is rows[2] and [one[0] for one in both.over] == rows[:2]
    assert both.over[0][1] == Difference(3.0, t_interval([10.0, 4.0, -5.0]))
    assert both.over[1][1] == Difference(8.0, t_interval([15.0, 5.0, 4.0]))
    assert own.over[0] == (rows[0], Difference(27.0, t_interval([30.0, 25.0, 26.0]))) and own.over[1] is None
    line = next(combination_lines({"rows": rows}, "stuck", 0.01))
    assert line[:3] == ["1% stuck", "convl+batch-statistics", "63.0"]
    assert line[3].startswith("+3.0 [") and line[3].endswith("(convl)") and line[4].endswith("(batch-statistics)")
    assert list(combination_lines({"rows": rows}, "stuck", 0.02)) == [
        ["2% stuck", "convl+batch-statistics", "2.0", "-", "-"]
    ]


def test_a_model_that_was_handed_over_is_copied_and_used(tmp_path, capsys):
    folder = tmp_path / "mine"
    where = ["none", "--scale", "smoke", "--base", str(folder), "--data", "digits", "--out", str(tmp_path / "out")]
    make_base(
        "vgg11-tiny", load_data("digits"), QatConfig(epochs=1), out=folder, device=torch.device("cpu")
    )  # fmt: skip
    workspace, mine = Workspace(tmp_path / "out"), replace(QUICK, base=str(folder), methods=[])
    with engine(workers=0, threads=1, scheduler=None) as on:
        work = mine.work(workspace)
        work.check(work.run(on, retries=0, say=lambda line: None))
    (row,) = mine.record(workspace)["rows"]
    assert row["measured"]["ca"] == pytest.approx(load_base(folder).trained["ca"], abs=10)
    copied = workspace.store.folder(mine.base_step.address) / "model.safetensors"
    assert copied.read_bytes() == (folder / "model.safetensors").read_bytes()
    before = mine.base_step.address
    assert replace(QUICK, base=str(folder), data="digits").base_step.address == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert replace(mine).base_step.address != before
    assert run(["compare", *where, "--status"]) == 0
    four = Scheme(bits=4, granularity="channel")
    save_base(replace(load_base(folder), scheme=four), folder)
    own = replace(mine).base_step
    workspace.store.folder(own.address).mkdir(parents=True)
    own.perform(workspace)
    assert own.open(workspace).deployed.memory.scheme == four, "as its user stores it"
    make_base("vgg11-tiny", toy_data(), QatConfig(epochs=1, batch=16), out=folder, device=torch.device("cpu"))
    assert run(["compare", *where, "--dry-run"]) == 2
    assert "base model and data must have the same number of classes: got 2 and 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "mnist"}, "unknown data set of scale smoke 'mnist'"),
        ({"base": "VGG12"}, "unknown base model 'VGG12'"),
        ({"faults": ["flop"]}, "unknown fault model 'flop'"),
        ({"rates": [2.0]}, "must be in .0, 1.: got ber=2"),
        ({"rates": []}, "rates must have at least one value"),
        ({"methods": ["smaller"], "train_rate": 0.06}, "must be on the voltage curve"),
        ({"methods": ["randbot"]}, "Did you mean 'randbet'"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(changes, says):
    with pytest.raises(NeuralFuseError, match=says):
        replace(QUICK, **changes).rows  # noqa: B018


def test_the_command_lists_its_steps(tmp_path, capsys):
    arguments = ["compare", "--scale", "smoke", "--data", "GTSRB", "--base", "VGG11", "randbet+convs", "--dry-run"]
    assert run([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "protect vgg11-tiny on digits: randbet + convs" in out and "12 rows" in out
    assert run([*arguments, "--rates", "3", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_methods_from_the_command_line(tmp_path, capsys):
    arguments = ["--scale", "smoke", "--data", "GTSRB", "--base", "VGG11", "--rates", "0.01", "--chips", "10"]
    more = ["convl+batch-statistics", "randbet+convl"]
    assert run(["compare", *USUAL[1:], *more, *arguments, "--workers", "2", "--out", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (path,) = tmp_path.glob("comparison-vgg11-tiny-digits-*.json")
    assert json.loads(path.read_text()) == record
    rows = {(row["method"], row["faults"]): row["measured"] for row in record["rows"]}
    assert len(rows) == 2 * (len(USUAL) + len(more)) and None not in rows.values()
    for method in ("batch-statistics", "reestimate", "protected-bits", "weight-clipping", "randbet"):
        assert rows[method, "flip"]["gain_ci95"][0] > 0, method
    assert len(set(rows["smaller", "flip"]["per_chip"]["pa"])) == 1
    assert rows["smaller", "flip"]["energy"] <= rows["none", "flip"]["energy"]
    latex = path.with_suffix(".tex").read_text().splitlines()
    names = [line.split()[0] for line in latex if line.strip()]
    assert [name for name in names if name.startswith("randbet")] == ["randbet", "randbet+convl"] * 2


def test_the_page_names_every_method(tmp_path):
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    listed = {name: access for names, _, access in rows for name in re.findall(r"`(.+?)`", names)}
    methods = {name: parse(name) for name in USUAL}
    methods |= {name: parse(f"convl+{name}")[1:] for name in ("calibrate", "tune")}
    NeuralFuse("uip", channels=1, image_size=(8, 8), seed=0).save_pretrained(tmp_path)
    methods["given"] = parse(f"given:folder={tmp_path}")
    assert set(listed) == set(methods)
    assert all(access == (", ".join(needs(methods[name])) or "-") for name, access in listed.items())
