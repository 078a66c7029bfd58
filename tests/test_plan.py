"""The planner against plain loops: statistics, options, choice, resuming, its record and command."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from helpers.plans import CURVE, HARDWARE, TARGET, Halves, base, faint_data, faults_at, plan_with
from neuralfuse.cli.main import run
from neuralfuse.energy import GENERATOR_LAYERS, count
from neuralfuse.errors import ConfigError, FileFormatError
from neuralfuse.evaluation import Target, chips_for_share, mean_at_least, pareto, share_at_least
from neuralfuse.faults import (
    BitRates,
    Chip,
    Measured,
    Stuck,
    VoltageCurve,
    planning_chips,
    synthetic_map,
    validation_chips,
)
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Activations, Deployed, deploy
from neuralfuse.memory.readout import Secded
from neuralfuse.nets import DeployedBase
from neuralfuse.plan import Option, Planner, cheapest, plan_text, usual_voltages
from neuralfuse.quant import Layers, Scheme
from neuralfuse.scoring import accuracy, plain_inputs

# Statistics


@pytest.mark.parametrize("count", [1, 2, 10, 30, 299])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.99])
def test_the_share_of_chips_is_bounded_as_clopper_and_pearson_do(count, confidence):
    for passed in {0, 1, count // 2, count - 1, count}:
        wanted = stats.beta.ppf(1 - confidence, passed, count - passed + 1) if passed else 0.0
        assert share_at_least(passed, count, confidence) == pytest.approx(wanted, abs=1e-9)
    fewest = chips_for_share(0.9, confidence)
    assert share_at_least(fewest, fewest, confidence) >= 0.9 > share_at_least(fewest - 1, fewest - 1, confidence)


def test_the_bound_below_a_mean_is_student_s():
    values = [80.0, 90.0, 85.0, 84.0, 91.0]
    wanted = stats.t.ppf(0.05, 4, loc=86.0, scale=stats.sem(values))
    assert mean_at_least(values) == pytest.approx(wanted)
    assert mean_at_least([1.0]) is None


def test_a_target_needs_as_many_chips_as_can_show_it():
    assert Target(accuracy=85).chips == 30
    assert Target(accuracy=85, share=0.99).chips == 299
    assert Target(accuracy=85, share=0.9).chips == 29
    assert Target(accuracy=85, share=0.5).chips == 10
    assert str(Target(accuracy=85, share=0.99)) == "85% on 99% of all chips, 95% sure"
    assert str(Target(accuracy=85)) == "a mean of 85%, 95% sure"


def test_what_reaches_a_target():
    mean, most = Target(accuracy=80), Target(accuracy=80, share=0.9)
    assert mean.is_met([81.0] * 5 + [82.0] * 5)
    assert not mean.is_met([60.0, 101.0] * 5), "a mean above it that is not known well enough"
    assert most.is_met([81.0] * 29)
    assert not most.is_met([81.0] * 28)
    assert not most.is_met([81.0] * 29 + [79.0])
    assert not mean.is_met([99.0]), "one chip of many shows nothing"
    assert mean.is_met([80.0], exact=True) and most.is_met([80.0], exact=True)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(0, 100), min_size=10, max_size=30), more=st.integers(0, 20),
    share=st.sampled_from([None, 0.5, 0.9]), ask=st.floats(1, 100),
)  # fmt: skip
def test_what_is_lost_cannot_be_won_back(values, more, share, ask):
    target = Target(accuracy=ask, share=share)
    if target.is_lost(values, len(values) + more):
        assert not target.is_met([*values, *[100.0] * more])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 0}, r"target must be an accuracy in \[1, 100\], in percent and not a fraction: got 0"),
        ({"accuracy": 0.85}, "got 0.85"),
        ({"accuracy": 101}, "got 101"),
        ({"accuracy": 80, "share": 1.0}, r"yield must be in \(0, 1\): got 1.0"),
        ({"accuracy": 80, "confidence": 0.4}, r"confidence must be in \(0.5, 1\): got 0.4"),
    ],
)
def test_targets_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Target(**options)


def test_planning_chips_are_of_their_own():
    faults = Stuck(ber=0.1)
    seeds = [chip.seed for chip in planning_chips(faults, 2500)]
    assert min(seeds) > max(chip.seed for chip in validation_chips(faults, 2500))
    assert max(seeds) < 50_000, "the published ones begin there"


# Planning


@pytest.fixture
def fuse() -> NeuralFuse:
    return NeuralFuse("uip", channels=1, image_size=(8, 8), seed=0).eval()


def planner(**options) -> Planner:
    return Planner(
        base().deployed, faint_data().test, **{"faults_at": faults_at, "hardware": HARDWARE, "target": TARGET} | options
    )


def test_every_way_is_measured_as_a_plain_loop_would(fuse):
    found = planner(chips=6, fuses={"u": fuse}).at(0.6, [3])
    assert [(one.name, one.kind, one.protected) for one in found] == [
        ("no protection", "unprotected", 0), ("u", "neuralfuse", 0), ("3 bits protected", "protected bits", 3),
    ]  # fmt: skip
    deployed, split = base().deployed, faint_data().test
    plain = plain_inputs(split, deployed.input_range)
    hardened = BitRates.protecting(Stuck(ber=0.4), msbs=3)
    with torch.no_grad():
        fused = fuse(plain)
    for one, faults, inputs in zip(
        found, (Stuck(ber=0.4), Stuck(ber=0.4), hardened), (plain, fused, plain), strict=True
    ):
        wanted = [
            accuracy(deployed.perturbed(Chip(faults, chip.seed)), inputs, split.labels)
            for chip in planning_chips(faults, 6)
        ]
        assert list(one.accuracies) == wanted
    assert len(set(found[0].accuracies)) > 1, "chips differ"


def test_what_a_way_costs(fuse):
    made = planner(chips=3, fuses={"u": fuse})
    plain, fused, hardened = made.at(0.5, [2])
    shape = {"channels": 1, "image_size": (8, 8)}
    reads = count(Halves(), **shape).accesses.weight_reads
    added = count(fuse, **shape, layers=GENERATOR_LAYERS).accesses.weight_reads
    assert (reads, added) == (32, 64)
    assert plain.weights == pytest.approx(0.25)
    assert fused.weights == pytest.approx(0.25 + 64 / 32)
    assert hardened.weights == pytest.approx((2 + 6 * 0.25) / 8)
    assert plain.weights < plain.inference < 1, "what does not scale keeps its cost"
    half = made.smaller("small", base(stride=4).deployed)
    assert [(one.voltage, one.weights) for one in half] == [(1.0, 0.25), (0.7, 0.125)]
    assert half[0].accuracies == half[1].accuracies and len(half[0].accuracies) == 1


def test_no_chip_is_drawn_where_no_cell_fails(fuse):
    found = planner(fuses={"u": fuse}).at(0.7, [2])
    assert [one.name for one in found] == ["no protection", "u"], "there is nothing to protect bits from"
    assert all(len(one.accuracies) == 1 and one.exact for one in found)
    assert found[0].accuracies == (100.0,)


def test_measuring_ends_when_all_is_lost():
    hopeless = planner(target=Target(accuracy=100, share=0.9), chips=29).at(0.5)
    assert len(hopeless[0].accuracies) == 10
    assert len(planner(target=Target(accuracy=1, share=0.5), chips=12).at(0.5)[0].accuracies) == 12


def option(name: str, energy: float, *accuracies: float, ber: float = 0.1, kind: str = "unprotected") -> Option:
    return Option(
        name=name, kind=kind, voltage=0.5, ber=ber, weights=energy, inference=2 - energy, accuracies=accuracies,
        exact=ber == 0,
    )  # fmt: skip


def test_the_choice_is_the_cheapest_that_reaches_the_target():
    options = [
        option("a", 0.9, 99.0, ber=0),
        option("b", 0.5, *[91.0, 92.0] * 5),
        option("c", 0.4, *[89.0, 90.5] * 5),
        option("d", 0.45, *[93.0, 94.0] * 5, kind="neuralfuse"),
    ]
    assert cheapest(options, TARGET, "weights").name == "d"
    assert cheapest(options, TARGET, "weights", kinds=["unprotected"]).name == "b"
    assert cheapest(options, TARGET, "inference").name == "a"
    assert cheapest(options, Target(accuracy=99.5), "weights") is None


@settings(max_examples=200, deadline=None)
@given(points=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_pareto_set_is_what_no_other_beats(points):
    front = pareto(points)
    assert [points[index] for index in front] == sorted({points[index] for index in front}), "each once, by cost"
    for mine in points:
        beaten = any(other[0] <= mine[0] and other[1] >= mine[1] and other != mine for other in points)
        assert (mine in {points[index] for index in front}) != beaten


def test_the_usual_voltages_span_the_curve():
    grid = usual_voltages(HARDWARE)
    assert (grid[0], grid[-1], len(grid)) == (0.7, 0.5, 7)
    rates = [CURVE.ber(voltage) for voltage in grid[1:]]
    ratios = [high / low for low, high in itertools.pairwise(rates)]
    assert ratios == pytest.approx([ratios[0]] * 5, rel=1e-2)
    assert rates[-1] == pytest.approx(0.8)


def test_a_plan_is_kept_and_checked_on_other_chips_and_images(tmp_path, fuse):
    record = plan_with(tmp_path, fuse)
    assert record == json.loads((tmp_path / "plan.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "check.json"}
    names = [(one["name"], one["voltage"]) for one in record["options"]]
    assert names == [
        ("no protection", 0.7), ("u", 0.7), ("no protection", 0.6), ("u", 0.6), ("4 bits protected", 0.6),
        ("no protection", 0.5), ("u", 0.5), ("4 bits protected", 0.5), ("half", 1.0), ("half", 0.7),
    ]  # fmt: skip
    best = record["options"][record["choice"]]
    reaching = [one for one in record["options"] if one["meets_target"]]
    assert best["weights"] == min(one["weights"] for one in reaching)
    assert best["name"] == "half", "a quarter of the reads"
    check = record["check"]
    assert check["meets_target"] and check["mean"] == 100 and check["chips"] == 1
    assert (check["images"], record["config"]["images"]) == (60, 60)
    text = plan_text(record)
    assert "=> half" in text and "choose half at 0.7 V: 87.5% saved" in text and "the choice holds" in text

    hardened = plan_with(tmp_path, fuse, smaller=None, voltages=(0.5,))
    best, check = hardened["options"][hardened["choice"]], json.loads((tmp_path / "check.json").read_text())
    assert best["name"] == "4 bits protected"
    assert check["config"]["faults"]["shares"] == [1.0] * 4 + [0.0] * 4
    assert len(check["per_chip"]) == 12 and all(chip["seed"] >= 50_010 for chip in check["per_chip"])


def test_nothing_that_reaches_the_target_is_said_plainly(tmp_path, fuse):
    (tmp_path / "check.json").write_text("{}")
    record = plan_with(tmp_path, fuse, smaller=None, voltages=(0.5,), protect=[])
    assert (record["choice"], record["alternative"], record["check"]) == (None, None, None)
    assert not (tmp_path / "check.json").exists(), "an older plan's"
    assert "No measured way reaches the target." in plan_text(record)


def without_runs(folder) -> list[dict]:
    records = [json.loads((folder / name).read_text()) for name in ("plan.json", "check.json")]
    for record in records:
        del record["run"]
    return records


TO_INTERRUPT = {"smaller": None, "target": Target(accuracy=80)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict]:
    """The records of a plan that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    plan_with(folder, NeuralFuse("uip", channels=1, image_size=(8, 8), seed=0).eval(), **TO_INTERRUPT)
    return without_runs(folder)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 6, 14, 18])
def test_an_interrupted_plan_goes_on_to_the_same_end(whole, tmp_path, fuse, monkeypatch, stop_at):
    """In the middle of a voltage, between two of them, and in the check."""
    said = []

    def stop(text: str) -> None:
        said.append(text)
        if len(said) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan_with(tmp_path, fuse, say=stop, **TO_INTERRUPT)
    assert not (tmp_path / "plan.json").exists()
    with pytest.raises(FileFormatError, match="must belong to the same measurement to be resumed"):
        plan_with(tmp_path, fuse, resume=True, **TO_INTERRUPT, chips=11)
    kept = json.loads((tmp_path / ".plan.partial").read_text())["per_chip"]
    measured = []
    original = Deployed.perturbed
    monkeypatch.setattr(Deployed, "perturbed", lambda self, chip: measured.append(chip.seed) or original(self, chip))
    plan_with(tmp_path, fuse, resume=True, **TO_INTERRUPT)
    planned = [seed for seed in measured if seed < 50_000]
    assert len(planned) == 4 * 12 - sum(len(one) for key, one in kept.items() if key != "0.7 V"), "nothing twice"
    assert without_runs(tmp_path) == whole
    assert not list(tmp_path.glob(".*"))


def test_too_few_chips_for_a_target_are_refused():
    with pytest.raises(
        ConfigError, match="chips must be at least 29 to show 80% on 90% of all chips, 95% sure: got 28"
    ):
        planner(target=Target(accuracy=80, share=0.9), chips=28)


def test_what_a_memory_stores_is_what_sees_the_voltage():
    module = nn.Sequential(
        nn.Flatten(), nn.utils.skip_init(nn.Linear, 64, 8), nn.utils.skip_init(nn.Linear, 8, 2)
    ).eval()
    for one in module[1:]:
        nn.init.constant_(one.weight, 0.5)
        nn.init.zeros_(one.bias)

    def at_half(**options) -> Option:
        given = {"faults_at": faults_at, "hardware": HARDWARE, "target": TARGET, "chips": 2}
        return Planner(deploy(module, **options), faint_data().test, **given).at(0.5)[0]

    def cost(**options) -> float:
        return at_half(**options).weights

    assert cost() == pytest.approx(0.25)
    assert cost(layers=Layers(exclude=("1.weight",))) == pytest.approx((64 * 8 + 0.25 * 16) / (64 * 8 + 16))
    overhead = Secded().overhead(deploy(module).memory.layout)
    assert overhead > 0.1
    assert cost(readout=Secded()) == pytest.approx(0.25 * (1 + overhead))
    assert at_half(activations=Activations()).inference < at_half().inference, "inputs and outputs see it too"


def test_a_smaller_model_has_words_of_its_own_width():
    four = deploy(Halves(2).eval(), scheme=Scheme(bits=4))
    assert planner(chips=2).smaller("four", four)[0].weights == pytest.approx(0.5)


@pytest.mark.parametrize("faults", ["map", "chip"])
def test_faults_that_are_one_chip_are_refused(faults, tmp_path):
    made = synthetic_map([Stuck(ber=0.3)], 1, rows=64, columns=64, banks=1, voltages=(0.5,), unit="V")
    model = Measured(map=made, voltage=0.5, random_offset=faults == "map")
    with pytest.raises(ConfigError, match="a plan must be made for faults that differ from chip to chip"):
        planner(faults_at=lambda voltage: model).at(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images must be at least 1: got images=0"),
        ({"protect": [2, 9]}, r"protected bits \(--protect\) must be in 1..8: got 2, 9"),
        ({"protect": [0]}, "must be in 1..8: got 0"),
        ({"target": Target(accuracy=80, share=0.999), "chips": None}, "a plan can draw 2500 chips: .* takes 2995"),
        ({"chips": 1}, "chips must be at least 2 to show a mean of 90%, 95% sure: got 1"),
    ],
)
def test_options_are_checked_before_anything_is_measured(options, message, tmp_path, fuse):
    with pytest.raises(ConfigError, match=message):
        plan_with(tmp_path, fuse, **options)
    assert not list(tmp_path.iterdir())


def test_smaller_models_take_the_same_images_and_a_voltage_without_errors(tmp_path, fuse):
    model = replace(base(4).model, image_size=(4, 4))
    with pytest.raises(ConfigError, match=r"half must take the base model's images, \(8, 8\): got \(4, 4\)"):
        plan_with(tmp_path, fuse, smaller={"half": DeployedBase.of(model)})
    with pytest.raises(ConfigError, match="a voltage curve must reach a voltage without errors to plan with"):
        replace(HARDWARE, curve=VoltageCurve(points=CURVE.points[:2], source="x"))


def test_modules_that_do_not_fit_are_refused(fuse):
    with pytest.raises(ConfigError, match=r"NeuralFuse u must be in eval mode: call eval\(\) first"):
        planner(fuses={"u": fuse.train()})
    with pytest.raises(ConfigError, match="a voltage curve must have a rate above 0 to plan with"):
        usual_voltages(replace(HARDWARE, curve=VoltageCurve(points=CURVE.points[2:], source="x")))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.mix = nn.utils.skip_init(nn.Linear, 64, 3), nn.utils.skip_init(nn.Bilinear, 3, 3, 2)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x):
        x = self.line(x.flatten(1))
        return self.mix(x, x)


def test_a_layer_that_cannot_be_counted_is_refused():
    with pytest.raises(ConfigError, match=r"every layer must be counted .* mix.weight \(read by aten::_trilinear"):
        Planner(deploy(Mixed()), faint_data().test, faults_at=faults_at, hardware=HARDWARE, target=TARGET)


@pytest.fixture
def net(tmp_path, monkeypatch) -> str:
    """The name of a base model, in the folder that commands run in."""
    (tmp_path / "to_plan.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    line = nn.utils.skip_init(nn.Linear, 64, 10)\n"
        "    nn.init.ones_(line.weight), nn.init.zeros_(line.bias)\n"
        "    return nn.Sequential(nn.Flatten(), line)\n"
    )
    monkeypatch.chdir(tmp_path)
    return "to_plan:net"


def test_the_command_draws_its_plan(net, tmp_path, capsys):
    options = "--target 5 --voltages 0.9 --chips 2 --images 20 --protect 4"
    assert run(["plan", "--base", net, "--out", "plan", *options.split()]) == 0
    made = {path.name for path in (tmp_path / "plan").iterdir()}
    record = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert made == {"plan.json", "plan.png", "check.json"} - ({"check.json"} if record["check"] is None else set())
    assert (tmp_path / "plan" / "plan.png").stat().st_size > 20_000
    assert "plan.json, plan.png" in capsys.readouterr().out or record["check"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--target 0.85", "target must be an accuracy in [1, 100], in percent and not a fraction: got 0.85"),
        ("--target 80 --yield 1", "yield must be in (0, 1): got 1"),
        ("--target 80 --faults map.npz", "--faults must be a fault model for a plan: map.npz is a single chip"),
        ("--target 80 --voltages 1.2", "voltage must be on the curve, in [0.8, 1] Vmin: got 1.2"),
        ("--target 80 --array 0x1", "an array must have at least one row and one column"),
    ],
)
def test_nonsense_gets_one_line(net, options, message, capsys):
    assert run(["plan", "--base", net, "--out", "plan", *options.split()]) == 2
    err = capsys.readouterr().err.removeprefix("loading digits\n")
    assert message in err and err.count("\n") == 1
