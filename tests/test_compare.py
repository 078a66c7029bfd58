"""Comparisons: which steps they take, what they share, what a row says; one comparison from end to end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch

from conftest import ROOT, toy_data
from neuralfuse.cli.main import run
from neuralfuse.compare import USUAL, Comparison, as_latex, as_markdown, as_text, memory_energy
from neuralfuse.compare.best import LEVELS, Difference, best, together
from neuralfuse.compare.show import difference, together_lines
from neuralfuse.compare.steps import PARTIAL, ComparisonStep
from neuralfuse.config import QatConfig
from neuralfuse.data import load_data
from neuralfuse.errors import NeuralFuseError
from neuralfuse.evaluation import t_interval
from neuralfuse.faults import default_curve
from neuralfuse.files import write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.methods import needs, parse
from neuralfuse.nets import load_base, save_base
from neuralfuse.pipeline import make_base
from neuralfuse.published import Measurement
from neuralfuse.quant import Scheme
from neuralfuse.reproduce import Request
from neuralfuse.steps import Workspace, engine, load_scale

FAULTS = ("stuck", "reference")
SMOKE = load_scale("smoke")
QUICK = Comparison(
    scale=SMOKE, data="GTSRB", base="VGG11", methods=["batch-statistics", "protected-bits:bits=2"], faults=["flip"],
    rates=[0.01], train_rate=0.01, chips=3,
)  # fmt: skip


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


def test_test_images_mix_the_classes(made):
    workspace, _ = made
    step = QUICK.rows[0][1]
    split = step._test_images(workspace)
    assert len(split) == SMOKE.test_images
    whole = load_data("digits").test
    assert not torch.equal(split.labels, whole.labels[: len(split)])
    assert len(split.labels[:50].unique()) == 10


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
    both, own = together({"rows": rows}, "stuck", 0.01)
    assert both.row is rows[2] and [one[0] for one in both.over] == rows[:2]
    assert both.over[0][1] == Difference(3.0, t_interval([10.0, 4.0, -5.0]))
    assert both.over[1][1] == Difference(8.0, t_interval([15.0, 5.0, 4.0]))
    assert own.over[0] == (rows[0], Difference(27.0, t_interval([30.0, 25.0, 26.0]))) and own.over[1] is None
    line = next(together_lines({"rows": rows}, "stuck", 0.01))
    assert line[:3] == ["1% stuck", "convl+batch-statistics", "63.0"]
    assert line[3].startswith("+3.0 [") and line[3].endswith("(convl)") and line[4].endswith("(batch-statistics)")
    assert list(together_lines({"rows": rows}, "stuck", 0.02)) == [
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
        ({"rates": []}, "at least one of rates"),
        ({"methods": ["smaller"], "train_rate": 0.06}, "must be one whose voltage is known"),
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
    assert [line.partition(" ")[0] for line in latex if line.startswith("randbet")] == ["randbet", "randbet+convl"] * 2


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


def shown(rows: dict, one: str, other: str, ber: float) -> str:
    """How the page says by how much one method is more accurate than another."""
    return difference(Difference.of(rows[one, ber], rows[other, ber]))


def more(rows: dict, one: str, other: str, ber: float) -> tuple[float, float]:
    """The 95% interval of by how much one method is more accurate than another."""
    return Difference.of(rows[one, ber], rows[other, ber]).interval


def ahead(rows: dict, one: str, others: Iterable[str], ber: float) -> bool:
    """Whether one method is more accurate than each of others."""
    return all(more(rows, one, other, ber)[0] > 0 for other in others)


def level(rows: dict, one: str, other: str, ber: float) -> bool:
    """Whether no difference between two methods shows."""
    low, high = more(rows, one, other, ber)
    return low < 0 < high


def recorded(name: str) -> tuple[dict, dict]:
    """A committed comparison, and its rows by method and rate."""
    record = json.loads((ROOT / "results" / "comparisons" / name).read_text())
    return record, {(one["method"], one["ber"]): one for one in record["rows"] if one["measured"] is not None}


def words(name: str) -> str:
    """The text of a page, in one line."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


RATES = (0.005, 0.01, 0.02)
ADDED = ("batch-statistics", "reestimate", "clip-quantization", "protected-bits", "zero-faulty-words")
CHAINS = {f"unets+{other}" for other in (*ADDED, "clip-activations")}
CHAINS |= {f"{other}+unets" for other in ("weight-clipping", "randbet", "awp")}
GENERATORS = {"convl", "convs", "deconvl", "deconvs", "unetl", "unets"}
MAP, FLIPS, LONGER = (
    f"gtsrb-vgg11-{kind}.json" for kind in ("cpu-reference", "cpu-flip", "ten-times-longer-reference")
)


def test_the_page_s_comparisons_are_of_one_model():
    measured = {name: recorded(name) for name in (MAP, FLIPS, LONGER)}
    for record, rows in measured.values():
        assert record["config"]["chips"] == 30 and record["config"]["train_rate"] == 0.01
        assert {ber for _, ber in rows} == set(RATES)
        assert rows["none", 0.01]["measured"]["ca"] == measured[MAP][1]["none", 0.01]["measured"]["ca"]
    for ber in RATES:  # on the same chips, too
        one, other = (measured[name][1]["none", ber]["measured"]["per_chip"] for name in (MAP, LONGER))
        assert one == other


def test_what_the_page_says_of_ten_times_the_steps_is_in_the_record():
    record, rows = recorded(LONGER)
    alone = ("batch-statistics", "reestimate", "clip-quantization", "protected-bits", "zero-faulty-words")
    assert ahead(rows, "unets", (*alone, "weight-clipping", "randbet", "smaller"), 0.005)
    assert ahead(rows, "unets", alone, 0.01) and ahead(rows, "smaller", ["unets"], 0.01)
    assert level(rows, "unets", "randbet", 0.01) and level(rows, "unets", "weight-clipping", 0.01)
    better = ("randbet", "weight-clipping", "smaller", *alone[:2], alone[3])
    assert all(ahead(rows, one, ["unets"], 0.02) for one in better)
    clean = rows["none", 0.01]["measured"]["ca"]
    for ber in RATES:
        for other in ("batch-statistics", "reestimate", "protected-bits"):
            both = f"unets+{other}"
            assert ahead(rows, both, ["unets", other, "randbet"], ber)
            assert (rows[both, ber]["measured"]["pa"] > clean) == (ber < 0.02 or other == "protected-bits")
            assert ahead(rows, both, ["smaller"], ber) == (ber < 0.02 or other == "protected-bits")
    assert ahead(rows, "smaller", ["unets+reestimate"], 0.02)
    pa = {key: f"{row['measured']['pa']:.1f}" for key, row in rows.items()}
    readme, page = words("README.md"), words("docs/comparison.md")
    both = {ber: pa["unets+reestimate", ber] for ber in (0.01, 0.02)}
    for sentence in (
        f"({pa['unets', 0.01]}% and {pa['randbet', 0.01]}% at 1% faulty cells, from {pa['none', 0.01]}%)",
        f"far behind at 2% ({pa['unets', 0.02]}% and {pa['randbet', 0.02]}%)",
        f"holds **{both[0.01]}% at 1% and {both[0.02]}% at 2%** (nothing: {pa['none', 0.02]}%)",
        f"a smaller model at full voltage holds {pa['smaller', 0.01]}%",
    ):
        assert sentence in readme, sentence
    names = {"reestimate": "re-estimation", "zero-faulty-words": "a fault map"}
    beaten = ("reestimate", "batch-statistics", "protected-bits", "zero-faulty-words")
    lost = {name: _lost(rows, name) for name in ("unets", "unets+reestimate", "randbet")}
    shorter = recorded(MAP)[1]
    worth = [difference(Difference.of(rows["unets", ber], shorter["unets", ber])) for ber in RATES]
    minutes = {name: _training(record, name) for name in ("unets", "randbet")}
    for sentence in (
        *(f"{names.get(one, one.replace('-', ' '))} by {shown(rows, 'unets', one, 0.01)}" for one in beaten),
        f"holds {pa['unets', 0.01]}% at 1%, not {shorter['unets', 0.01]['measured']['pa']:.1f}% ({worth[1]})",
        f"are worth** {worth[0]}, {worth[1]} and {worth[2]} at the three rates",
        f"it at 1% ({shown(rows, 'unets', 'randbet', 0.01)} and {shown(rows, 'unets', 'weight-clipping', 0.01)})",
        f"the smaller network is ahead ({shown(rows, 'unets', 'smaller', 0.01)})",
        f"ahead of RandBET by {shown(rows, 'unets', 'randbet', 0.005)} and of the smaller network by "
        f"{shown(rows, 'unets', 'smaller', 0.005)}",
        f"RandBET ({shown(rows, 'unets', 'randbet', 0.02)})",
        f"batch statistics ({shown(rows, 'unets', 'batch-statistics', 0.02)})",
        f"hold {pa['unets+batch-statistics', 0.01]}% and more up to 1% and {pa['unets+reestimate', 0.02]}% at 2%",
        f"they hold {pa['reestimate', 0.02]} and {pa['batch-statistics', 0.02]}%",
        f"one protected bit it is {pa['unets+protected-bits', 0.02]}% even at 2%",
        f"without any errors ({clean}%)",
        f"(CA {rows['unets', 0.01]['measured']['ca']}, RandBET's {rows['randbet', 0.01]['measured']['ca']})",
        "is ahead of it by {}, {} and {}".format(*(shown(rows, "unets+reestimate", "randbet", ber) for ber in RATES)),
        f"at 0.5% and 1% ({shown(rows, 'unets+reestimate', 'smaller', 0.01)}), "
        f"not at 2% ({shown(rows, 'unets+reestimate', 'smaller', 0.02)})",
        f"at all three ({shown(rows, 'unets+protected-bits', 'smaller', 0.02)} at 2%)",
        f"({minutes['unets']:.0f} minutes of one core)",
        f"{minutes['unets']:.0f} minutes where RandBET's model had {minutes['randbet']:.0f}",
        f"at 1% cost is {lost['unets']:.1f} points with UNetS alone, {lost['unets+reestimate']:.1f} with re-estimation "
        f"too, and {lost['randbet']:.1f} with RandBET",
        f"where the smaller network's is {rows['smaller', 0.01]['measured']['energy']:.0%}",
    ):
        assert sentence in page, sentence
    costs = sorted(row["measured"]["energy"] for (name, _), row in rows.items() if "unets" in name)
    assert f"{costs[0]:.0%} to {costs[-1]:.0%}".replace("% to", " to") in page


def _lost(rows: dict, method: str) -> float:
    measured = rows[method, 0.01]["measured"]
    return measured["ca"] - measured["pa"]


def _training(record: dict, method: str) -> float:
    """How many minutes a method's training took, or that of the record's one NeuralFuse."""
    row = next(one for one in record["rows"] if one["method"] == method)
    made = record["steps"][row["step"]]["protection"]
    if row["stages"][0]["method"] == "neuralfuse":
        (made,) = (step for step in record["steps"] if step.startswith("module-"))
    return record["run"]["steps"][made]["seconds"] / 60


def test_what_the_page_says_of_flips_is_in_the_record():
    _, rows = recorded(FLIPS)
    by_map = recorded(LONGER)[1]
    every = {method for method, _ in rows}
    assert every >= CHAINS | GENERATORS and len(every - CHAINS) == 18
    for ber in (0.005, 0.01):
        assert ahead(rows, "unetl", ("batch-statistics", "reestimate", "clip-quantization", "clip-activations"), ber)
    assert level(rows, "unetl", "protected-bits", 0.01)
    assert all(ahead(rows, one, ["unetl"], 0.02) for one in ("reestimate", "protected-bits"))
    for ber in RATES:
        assert ahead(rows, "unetl", GENERATORS - {"unetl"}, ber)
        assert all(ahead(rows, f"unets+{one}", ["unets", one], ber) for one in ADDED)
        assert ahead(rows, "unets+protected-bits", ["randbet"], ber)
        assert max(map(abs, more(rows, "clip-activations", "none", ber))) < 0.05
        assert max(map(abs, more(rows, "unets+clip-activations", "unets", ber))) < 0.05
        assert ahead(rows, "weight-clipping+unets", ["weight-clipping"], ber)
        assert level(rows, "randbet+unets", "randbet", ber) == (ber < 0.02)
        assert ahead(rows, "none", ["awp"], ber)
        tied = {"smaller"} | ({"unets+protected-bits"} if ber == 0.005 else set())
        assert ahead(rows, "smaller", every - tied, ber)
    assert level(rows, "awp+unets", "unets", 0.01) and level(rows, "smaller", "unets+protected-bits", 0.005)
    plain, mapped = rows["none", 0.01]["measured"], by_map["none", 0.02]["measured"]
    assert plain["changed_bits"] == pytest.approx(0.01, rel=0.02) == mapped["changed_bits"]
    cells = recorded("gtsrb-vgg11-cpu-stuck.json")[1]["none", 0.02]["measured"]
    assert cells["changed_bits"] == pytest.approx(0.01, rel=0.02) and cells["ca"] == plain["ca"]
    energies = [rows["none", ber]["measured"]["energy"] for ber in (0.02, 0.01)]
    page = words("docs/comparison.md")
    behind, protected = (shown(rows, one, "unetl", 0.02) for one in ("reestimate", "protected-bits"))
    for sentence in (
        f"{mapped['pa']:.1f}% against {plain['pa']:.1f}% without protection",
        f"(+-{mapped['pa_sd']:.1f} against +-{plain['pa_sd']:.1f})",
        f"which change as many bits, it is {cells['pa']:.1f}% +- {cells['pa_sd']:.1f}",
        f"and so {energies[0]:.0%} rather than {energies[1]:.0%}",
        f"hardly ahead of re-estimation at 1% ({shown(rows, 'unets', 'reestimate', 0.01)})",
        f"by {shown(rows, 'unetl', 'reestimate', 0.005)} at 0.5% and {shown(rows, 'unetl', 'reestimate', 0.01)} at 1%",
        f"shows at 1% ({shown(rows, 'unetl', 'protected-bits', 0.01)})",
        f"(by {behind} and {protected})",
        f"at 1% it is worth {shown(rows, 'unets+reestimate', 'reestimate', 0.01)} with BatchNorm re-estimated, "
        f"{shown(rows, 'unets+clip-quantization', 'clip-quantization', 0.01)} with clipped quantization, "
        f"{shown(rows, 'unets+zero-faulty-words', 'zero-faulty-words', 0.01)} with a fault map and "
        f"{shown(rows, 'unets+protected-bits', 'protected-bits', 0.01)} with a protected bit",
        f"{rows['unets+protected-bits', 0.01]['measured']['pa']:.1f}% at 1%, beats RandBET at every rate "
        f"(there by {shown(rows, 'unets+protected-bits', 'randbet', 0.01)})",
        f"UNetS adds {shown(rows, 'randbet+unets', 'randbet', 0.01)} at 1% and "
        f"{shown(rows, 'randbet+unets', 'randbet', 0.02)} at 2%",
        f"saw none, {shown(rows, 'weight-clipping+unets', 'weight-clipping', 0.01)} and "
        f"{shown(rows, 'weight-clipping+unets', 'weight-clipping', 0.02)}",
        f"({shown(rows, 'awp', 'none', 0.01)} at 1%)",
        f"the two are level ({shown(rows, 'awp+unets', 'unets', 0.01)})",
        f"clipping** by {shown(rows, 'randbet', 'weight-clipping', 0.01)} at 1% and "
        f"{shown(rows, 'randbet', 'weight-clipping', 0.02)} at 2%, and of UNetL by "
        f"{shown(rows, 'randbet', 'unetl', 0.01)} at 1%",
        f"does not show ({shown(rows, 'randbet', 'weight-clipping', 0.005)})",
        f"UNetL is ahead (by {shown(rows, 'unetl', 'randbet', 0.005)})",
        f"at 0.5% ({shown(rows, 'smaller', 'unets+protected-bits', 0.005)})",
    ):
        assert sentence in page, sentence


def test_what_the_page_says_was_found_is_in_the_record():
    _, rows = recorded(MAP)
    every = {method for method, _ in rows}
    alone = every - CHAINS
    assert every >= CHAINS | GENERATORS and len(alone) == 18
    best = sorted(GENERATORS, key=lambda name: rows[name, 0.01]["measured"]["pa"])[-2:]
    worst = min(GENERATORS, key=lambda name: rows[name, 0.01]["measured"]["pa"])
    assert best == ["convl", "unetl"] and worst == "convs"
    for ber in RATES:
        assert ahead(rows, "unetl", GENERATORS - {"unetl"}, ber)
        assert ahead(rows, "uip", ["none"], ber) and ahead(rows, "convs", ["uip"], ber)
        tied = {"unets+reestimate", "unets+protected-bits", "weight-clipping+unets"} if ber == 0.005 else set()
        assert ahead(rows, "smaller", every - tied - {"smaller"}, ber)
        assert all(level(rows, "smaller", one, ber) for one in tied)
        assert all(ahead(rows, f"unets+{one}", ["unets", one], ber) for one in ADDED)
        assert all(ahead(rows, f"{one}+unets", [one], ber) for one in ("weight-clipping", "randbet"))
        assert ahead(rows, "unets+protected-bits", ["randbet"], ber) and level(rows, "awp+unets", "unets", ber)
        assert ahead(rows, "unets+reestimate", ["randbet"], ber) == (ber < 0.02)
        assert max(map(abs, more(rows, "unets+clip-activations", "unets", ber))) < 0.15
        assert ahead(rows, "randbet", ["weight-clipping"], ber) and not ahead(rows, "awp", ["none"], ber)
        assert rows["smaller", ber]["measured"]["energy"] < rows["none", ber]["measured"]["energy"] < 1
        assert all(rows[name, ber]["measured"]["energy"] > 1 for name in GENERATORS)
        retrained = {"randbet", "weight-clipping", "smaller", *(["unetl"] if ber == 0.005 else [])}
        assert ahead(rows, "randbet", alone - retrained, ber)
    for ber in (0.01, 0.02):
        assert ahead(rows, "reestimate", GENERATORS, ber)
    assert ahead(rows, "unetl", ["reestimate"], 0.005)
    again = recorded(MAP.replace(".json", "-another-base.json"))[1]
    assert level(again, "unetl", "reestimate", 0.005) and level(again, "randbet", "weight-clipping", 0.01)
    assert level(again, "convs", "uip", 0.01)
    clean = [one["none", 0.01]["measured"]["ca"] for one in (again, rows)]
    page = words("docs/comparison.md")
    for sentence in (
        f"at 1% by {shown(rows, 'unetl', 'convl', 0.01)} over ConvL, the next",
        f"(`uip`) wins {shown(rows, 'uip', 'none', 0.01)} at 1%",
        f"(`convs`) {shown(rows, 'convs', 'none', 0.01)}",
        f"(UNetL by {shown(rows, 'reestimate', 'unetl', 0.01)} and {shown(rows, 'reestimate', 'unetl', 0.02)})",
        f"ahead of it (by {shown(rows, 'unetl', 'reestimate', 0.005)})",
        "behind it by {}, {} and {} at the three".format(
            *(shown(rows, "randbet", "weight-clipping", r) for r in RATES)
        ),
        f"({shown(rows, 'awp', 'none', 0.01)} at 1%)",
        f"RandBET at 1% by {shown(rows, 'smaller', 'randbet', 0.01)}",
        f"At 1% UNetS is worth {shown(rows, 'unets+reestimate', 'reestimate', 0.01)} with BatchNorm re-estimated",
        "(by {} and {}); {} with a protected bit".format(
            *(shown(rows, "unets+reestimate", "randbet", ber) for ber in (0.005, 0.01)),
            shown(rows, "unets+protected-bits", "protected-bits", 0.01),
        ),
        f"and {shown(rows, 'weight-clipping+unets', 'weight-clipping', 0.01)} and "
        f"{shown(rows, 'randbet+unets', 'randbet', 0.01)} on the models",
        f"at 1% of the map ({shown(rows, 'randbet+unets', 'randbet', 0.01)})",
        f"behind UNetS ({shown(rows, 'awp+unets', 'unets', 0.01)})",
        f"({rows['smaller', 0.01]['measured']['ca']}% on these images, the base model {clean[1]}%)",
        f"(the base model's CA {clean[0]}, here {clean[1]})",
        f"re-estimation showed ({shown(again, 'unetl', 'reestimate', 0.005)})",
        f"behind by more ({shown(again, 'unetl', 'reestimate', 0.01)})",
        f"`convs` and `uip` ({shown(again, 'convs', 'uip', 0.01)})",
        f"RandBET and weight clipping ({shown(again, 'randbet', 'weight-clipping', 0.01)})",
    ):
        assert sentence in page, sentence


def one_chip(data: str) -> Callable[[str, str, str], Difference]:
    """By how much one method is better than another in the study of one chip."""
    record = json.loads((ROOT / "results" / "comparisons" / f"one-chip-{data}-vgg11.json").read_text())
    every = {(one["method"], one["faults"]): one for one in record["rows"]}
    assert record["config"]["chips"] == 10 and {faults for _, faults in every} == {"stuck", "reference"}
    return lambda one, other, faults: Difference.of(every[one, faults], every[other, faults])


def test_what_the_page_says_of_one_chip_is_in_the_records():
    page = " ".join((ROOT / "docs" / "one-chip.md").read_text(encoding="utf-8").split())
    signs, photos = one_chip("gtsrb"), one_chip("cifar10")
    ten, hundred, thousand, most = (
        f"unets+calibrate{count}" for count in (":images=10", ":images=100", "", ":images=10000")
    )

    def low(found: Difference) -> float:
        return found.interval[0]

    for study in (signs, photos):
        for faults in ("stuck", "reference"):
            assert low(study(thousand, "unets", faults)) > 0 and study(most, thousand, faults).points < 0.6
            assert low(study("unets+tune", "unets", faults)) < 0
    assert all(low(signs(hundred, "unets", faults)) < 0 < low(photos(hundred, "unets", faults)) for faults in FAULTS)
    worse = [signs(ten, "unets", "stuck"), signs(ten, "unets", "reference"), photos(ten, "unets", "stuck")]
    assert all(one.interval[1] < 0 for one in worse) and photos(ten, "unets", "reference").interval[1] > 0
    beside = {(study, faults): study(thousand, "reestimate", faults) for study in (signs, photos) for faults in FAULTS}
    assert low(beside[signs, "stuck"]) > 0 and beside[photos, "reference"].interval[1] < 0
    assert all(low(beside[one]) < 0 < beside[one].interval[1] for one in ((signs, "reference"), (photos, "stuck")))
    asked = {(study, faults): difference(study("unets+tune", "unets", faults)) for study, faults in beside}
    gains = [difference(study(thousand, "unets", faults)) for faults in FAULTS for study in (signs, photos)]
    for sentence in (
        f"by {gains[0]} (GTSRB) and {gains[1]} points (CIFAR-10)", f"by {gains[2]} and {gains[3]}.",
        f"{difference(worse[0])} (stuck) and {difference(worse[1])} (map)", f"stuck cells, {difference(worse[2])}:",
        *(f"({difference(one)})" for one in beside.values()),
        f"{asked[signs, 'stuck']} and {asked[signs, 'reference']} on GTSRB",
        f"{asked[photos, 'stuck']} and {asked[photos, 'reference']} on CIFAR-10",
    ):  # fmt: skip
        assert sentence in page, sentence


def test_what_the_page_says_of_questions_is_in_the_record():
    record, rows = recorded("tuned-cifar10-vgg11.json")
    given = "given:folder=runs/resnet18-unets"
    tuned = (rows[f"{given}+tune{count}", 0.01] for count in ("", ":queries=5000"))
    more, few = (Difference.of(one, rows[given, 0.01]) for one in tuned)
    page = (ROOT / "docs" / "remote.md").read_text(encoding="utf-8")
    assert more.interval[0] > 0 > few.interval[0] and record["config"]["chips"] == 10
    assert f"by {difference(more)} points" in page and f"({difference(few)})" in page
