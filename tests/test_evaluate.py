"""Statistics against SciPy, evaluation against a loop written out, records."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from neuralfuse.errors import ConfigError, FileFormatError
from neuralfuse.evaluation import (
    ChipResult,
    Target,
    evaluate,
    evaluation_record,
    evaluation_text,
    mean,
    sample_sd,
    t_interval,
    t_quantile,
)
from neuralfuse.faults import Chip, Stuck
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import BaseModel, DeployedBase
from neuralfuse.pipeline import make_evaluation
from neuralfuse.runs import RunInfo
from neuralfuse.scoring import accuracy, correct


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 29, 99, 1000])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.995])
def test_quantiles_are_student_s(probability, freedom):
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-7, abs=1e-9)


def test_intervals_are_scipy_s():
    values = list(np.random.RandomState(0).randn(12) + 3)
    wanted = stats.t.interval(0.95, 11, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(wanted, rel=1e-7)
    assert sample_sd(values) == pytest.approx(np.std(values, ddof=1))
    assert mean(values) == pytest.approx(np.mean(values))


def test_one_chip_has_no_spread():
    assert sample_sd([3.0]) is None
    assert t_interval([3.0]) is None


class Echo(nn.Module):
    """Answers with the class that is written into the image, through weights that a chip can change."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.utils.skip_init(nn.Linear, 4, 4, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4))

    def forward(self, x):
        return self.head(x.flatten(1)[:, :4])


def test_accuracy_of_a_known_model():
    x = torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])].view(5, 4, 1, 1)
    labels = torch.tensor([0, 1, 2, 0, 1])
    assert correct(Echo(), x, labels, batch=2).tolist() == [True, True, True, False, False]
    assert accuracy(Echo(), x, labels) == 60.0


def test_nan_outputs_are_wrong():
    x = torch.full((3, 4, 1, 1), float("nan"))
    assert accuracy(Echo(), x, torch.zeros(3, dtype=torch.long)) == 0.0


@pytest.fixture
def setting(data):
    module = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 64, 2, bias=False)).eval()
    with torch.no_grad():
        module[1].weight.normal_(generator=torch.Generator().manual_seed(0))
    base = deploy(module)
    fuse = NeuralFuse("unets", channels=1, image_size=(8, 8), seed=1, trained={"note": "untrained"}).eval()
    model = BaseModel(name="linear", module=module, classes=2, channels=1, image_size=(8, 8))
    return base, fuse, model, data


def test_evaluation_equals_a_plain_loop(setting):
    base, fuse, _, data = setting
    chips = Stuck(ber=0.05).chips(4)
    result = evaluate(base, data.test, chips, fuse=fuse)
    x = data.test.images.float() / 127.5 - 1

    def score(model, inputs):
        with torch.inference_mode():
            return 100 * (model(inputs).argmax(1) == data.test.labels).float().mean().item()

    with torch.inference_mode():
        z = fuse(x)
    assert result.ca_float == pytest.approx(score(base.model, x))
    assert result.ca == pytest.approx(score(base, x))
    assert result.ca_nf == pytest.approx(score(base, z))
    for chip, row in zip(chips, result.per_chip, strict=True):
        model = base.perturbed(chip)
        assert row.seed == chip.seed
        assert row.pa == pytest.approx(score(model, x))
        assert row.pa_nf == pytest.approx(score(model, z))
        assert row.changed_bits == model.changed_bits > 0
    gains = [row.pa_nf - row.pa for row in result.per_chip]
    assert result.rp == pytest.approx(np.mean(gains))
    assert result.rp_ci95 == pytest.approx(
        stats.t.interval(0.95, 3, loc=np.mean(gains), scale=stats.sem(gains)), rel=1e-6
    )


def test_known_chips_are_not_measured_again(setting):
    base, fuse, _, data = setting
    chips = Stuck(ber=0.05).chips(3)
    known = {chips[1].seed: ChipResult(chips[1].seed, 12.0, 34.0, 0.5)}
    measured = []
    result = evaluate(base, data.test, chips, fuse=fuse, prior=known, report=measured.append)
    assert [row.seed for row in measured] == [chips[0].seed, chips[2].seed]
    assert result.per_chip[1].pa == 12.0


def test_what_is_known_without_neuralfuse_is_not_measured_again(setting, monkeypatch):
    base, fuse, model, data = setting
    opened = DeployedBase(model, base)
    faults = Stuck(ber=0.05)
    chips = faults.chips(3)
    whole = evaluate(base, data.test, chips, fuse=fuse)
    plain = evaluate(base, data.test, chips)
    scored = []
    monkeypatch.setattr("neuralfuse.evaluation.measure.accuracy", lambda *args: scored.append(args) or accuracy(*args))
    assert evaluate(base, data.test, chips, fuse=fuse, plain=plain) == whole
    assert len(scored) == 3 + 1, "PA(NF) of three chips, and CA(NF)"
    record = make_evaluation(None, opened, data, faults, chips=3)
    again = make_evaluation(fuse, opened, data, faults, chips=2, plain=record)
    assert [chip["pa"] for chip in again["per_chip"]] == [chip["pa"] for chip in record["per_chip"]][:2]
    with pytest.raises(
        ConfigError, match="the record without NeuralFuse must be of the same evaluation: it differs in faults"
    ):
        make_evaluation(fuse, opened, data, Stuck(ber=0.06), chips=2, plain=record)


@pytest.mark.parametrize("until", [1e-9, 4.0, 1e9])
def test_an_evaluation_stops_once_the_interval_is_as_narrow_as_asked(setting, until):
    base, fuse, _, data = setting
    chips = Stuck(ber=0.05).chips(12)
    whole = evaluate(base, data.test, chips, fuse=fuse).per_chip
    stopped = evaluate(base, data.test, chips, fuse=fuse, until=until).per_chip
    widths = []
    for count in range(2, 13):
        values = [one.pa_nf for one in whole[:count]]
        low, high = stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=stats.sem(values) or 1e-30)
        widths.append(high - low)
    wanted = next((count for count in range(5, 13) if widths[count - 2] <= until), 12)
    assert stopped == whole[:wanted]
    known = {one.seed: one for one in stopped[:4]}
    assert evaluate(base, data.test, chips, fuse=fuse, until=until, prior=known).per_chip == stopped


def test_evaluation_without_neuralfuse(setting):
    base, _, _, data = setting
    result = evaluate(base, data.test, [Chip(Stuck(ber=0.05), 1)])
    assert result.ca_nf is result.pa_nf is result.rp is result.rp_ci95 is result.pa_sd is None
    assert "PA(NF)" not in evaluation_text(evaluation_record(result, faults=Stuck(ber=0.05), config={}, run=RunInfo()))


def test_misuse_is_refused(setting):
    with pytest.raises(ConfigError, match=r"until must be positive: got until=0\."):
        evaluate(setting[0], setting[3].test, Stuck(ber=0.05).chips(3), until=0.0)
    base, fuse, _, data = setting
    with pytest.raises(ConfigError, match="at least one chip"):
        evaluate(base, data.test, [])
    with pytest.raises(ConfigError, match=r"call fuse\.eval\(\) first"):
        evaluate(base, data.test, [Chip(Stuck(ber=0.1), 0)], fuse=fuse.train())
    other = NeuralFuse("unets", channels=1, image_size=(8, 8), input_range="unit", seed=0).eval()
    with pytest.raises(ConfigError, match="one input range"):
        evaluate(base, data.test, [Chip(Stuck(ber=0.1), 0)], fuse=other)


RECORD_KEYS = {
    "schema", "config", "ber", "ber_kind", "changed_bits", "chips", "ca_float", "ca", "pa", "pa_sd", "ca_nf", "pa_nf",
    "pa_nf_sd", "rp", "rp_ci95", "published", "per_chip", "run",
}  # fmt: skip


def test_a_record_has_its_schema_s_keys(setting, tmp_path):
    base, fuse, model, data = setting
    opened = DeployedBase(model, base)
    out = tmp_path / "record.json"
    record = make_evaluation(fuse, opened, data, Stuck(ber=0.05), chips=3, out=out)
    assert json.loads(out.read_text()) == record
    assert set(record) == RECORD_KEYS
    assert record["schema"] == "neuralfuse/evaluation/1"
    assert [chip["seed"] for chip in record["per_chip"]] == [50_010, 50_012, 50_014]
    assert record["config"]["faults"] == {"kind": "stuck", "ber": 0.05, "stuck_at_1": 0.5}
    assert record["run"]["versions"]["torch"] == str(torch.__version__)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def without_run(record):
    return {key: value for key, value in record.items() if key != "run"}


def test_a_target_is_judged_by_the_chips_behind_neuralfuse(setting):
    base, fuse, model, data = setting
    opened = DeployedBase(model, base)
    record = make_evaluation(fuse, opened, data, Stuck(ber=0.2), chips=12, target=Target(accuracy=50.0, confidence=0.9))
    values = [chip["pa_nf"] for chip in record["per_chip"]]
    passed = sum(value >= 50 for value in values)
    bound = stats.beta.ppf(0.1, passed, 12 - passed + 1) if passed else 0.0
    judged = record["target"]
    assert (judged["accuracy"], judged["confidence"], judged["exact"]) == (50.0, 0.9, False)
    assert (judged["passed"], judged["worst"]) == (passed, min(values))
    assert judged["share_at_least"] == pytest.approx(bound, abs=1e-9)
    assert f"{passed} of 12 chips reach 50%, so at least {bound:.1%} of all chips do (90% sure)" in evaluation_text(
        record
    )
    sure = make_evaluation(None, opened, data, Stuck(ber=0.0), chips=3, target=Target(accuracy=1.0))
    assert sure["target"]["exact"] and sure["target"]["share_at_least"] == 1
    assert "of all chips" not in evaluation_text(sure), "no chip differs without errors"


def test_an_interrupted_evaluation_goes_on_to_the_same_record(setting, tmp_path):
    base, fuse, model, data = setting
    opened = DeployedBase(model, base)
    whole = make_evaluation(fuse, opened, data, Stuck(ber=0.05), chips=4)
    out = tmp_path / "record.json"
    said = []

    def stop(text):
        said.append(text)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_evaluation(fuse, opened, data, Stuck(ber=0.05), chips=4, out=out, say=stop)
    assert not out.exists()
    said.clear()
    with pytest.raises(FileFormatError, match="must belong to the same measurement"):
        make_evaluation(fuse, opened, data, Stuck(ber=0.04), chips=4, out=out, resume=True)
    again = make_evaluation(fuse, opened, data, Stuck(ber=0.05), chips=4, out=out, resume=True, say=said.append)
    assert len(said) == 1, "a chip is kept before it is told of"
    assert without_run(again) == without_run(whole)


def test_a_folder_cannot_be_a_record(setting, tmp_path):
    base, _, model, data = setting
    opened = DeployedBase(model, base)
    with pytest.raises(ConfigError, match="--out must be a file for the record: .* is a folder"):
        make_evaluation(None, opened, data, Stuck(ber=0.05), chips=1, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_chip_has_no_interval(setting):
    base, fuse, model, data = setting
    opened = DeployedBase(model, base)
    record = make_evaluation(fuse, opened, data, Stuck(ber=0.05), chips=1)
    assert record["rp_ci95"] is None
    assert "interval" not in evaluation_text(record)


def test_the_ten_published_chips(setting):
    base, _, model, data = setting
    opened = DeployedBase(model, base)
    record = make_evaluation(None, opened, data, Stuck(ber=0.05), chips=None)
    assert [chip["seed"] for chip in record["per_chip"]] == list(range(50_000, 50_010))


def test_evaluation_results_cannot_be_changed():
    result = ChipResult(1, 2.0, 3.0, 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.pa = 5.0
