"""Fitting a NeuralFuse to a model that one can only ask."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.cli import fails
from helpers.toy import toy_data
from neuralfuse.blackbox import Answers, Function, LimitedBox, Limits, tune, tuning_text
from neuralfuse.blackbox.tune import losses_of
from neuralfuse.cli.main import run
from neuralfuse.config import TuningConfig
from neuralfuse.errors import AnswerError, BudgetError, ConfigError
from neuralfuse.evaluation import t_interval
from neuralfuse.fuse import NeuralFuse
from neuralfuse.scoring import transform
from neuralfuse.seeds import generator

SHORT = TuningConfig(queries=2000, judged=20, step_images=10, directions=3, lr=0.1, sigma=0.1)


def fuse() -> NeuralFuse:
    made = NeuralFuse("convs", channels=1, image_size=(8, 8), seed=1).eval()
    made.trained = {"ber": 0.05, "generator_bits": 8}
    return made


def brightness(x: np.ndarray) -> np.ndarray:
    """Logits of two classes by the brighter half, for images that are darker than a fault makes the model believe."""
    halves = x[:, 0, :4].mean((1, 2)) - x[:, 0, 4:].mean((1, 2))
    return np.stack([-halves, halves], 1) * 3 + np.array([0.0, 6.0]) * x.mean((1, 2, 3))[:, None] + [0.0, 7.0]


@dataclass
class Counting:
    """A model that remembers what it was asked."""

    images: int = 0

    def __call__(self, x):
        self.images += len(x)
        return brightness(x)


def careful(function=brightness, name="call:it", **limits) -> LimitedBox:
    return LimitedBox(Function(function, name), classes=2, limits=Limits(**limits))


def test_a_step_goes_against_the_slopes_between_opposite_modules():
    """Two steps: the second one asks about modules around where the losses of the first one's point."""
    data, module, asked = toy_data(), fuse(), []

    def drawn(seed: int, step: int) -> list[int]:
        places = torch.randint(len(data.train), (SHORT.step_images,), generator=generator(seed, "images", step))
        return places.tolist()

    seed = next(seed for seed in range(99) if all(len(set(drawn(seed, step))) == 10 for step in (0, 1)))
    tuning = replace(SHORT, sigma=0.2, seed=seed, queries=2 * 60 + 2 * SHORT.judged)

    def answer(x):
        asked.append(torch.from_numpy(x.copy()))
        return brightness(x)

    with careful(answer) as box:
        _, record = tune(module, box, data, tuning)
    parameters = {name: one.detach() for name, one in module.named_parameters()}
    move = torch.zeros(sum(one.numel() for one in parameters.values()))
    for step in (0, 1):
        rows, gradient, found = drawn(seed, step), torch.zeros_like(move), []
        x, labels = data.train.images[rows].float() / 127.5 - 1, data.train.labels[rows]
        for k in range(3):
            way = torch.randn(len(move), generator=generator(seed, "tuning direction", step, k))
            for sign in (1, -1):
                at, moved = 0, {}
                for name, one in parameters.items():
                    part = (move + sign * 0.2 * way)[at : at + one.numel()].view_as(one)
                    moved[name] = one + one.abs().mean() * part
                    at += one.numel()
                inputs = torch.func.functional_call(module, moved, (x,)).detach()
                assert torch.allclose(asked[step][10 * len(found) : 10 * len(found) + 10], inputs, atol=1e-4)
                found.append(float(F.cross_entropy(torch.from_numpy(brightness(inputs.numpy())), labels)))
            gradient += (found[-2] - found[-1]) / 0.4 * way / 3
        assert len(asked[step]) == 60 and record["history"][step] == pytest.approx(sum(found) / 6, rel=1e-4)
        move = move - tuning.lr * gradient.sign()  # Adam's first step


def test_it_learns_within_its_questions_and_leaves_the_module_alone():
    data, module, asked = toy_data(), fuse(), Counting()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    said = []
    with careful(asked) as box:
        made, record = tune(module, box, data, SHORT, say=said.append)
    assert asked.images == record["run"]["asked"] <= 2000
    assert record["steps"] == (2000 - 40) // 60
    assert len(said) >= 10
    assert record["kept"] == "tuned" and record["gain"] > 0
    assert np.mean(record["history"][-5:]) < np.mean(record["history"][:5])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert made.trained["tuned"][0]["queries"] == 2000 and made.trained["ber"] == 0.05
    assert not made.training

    judged = data.validation[data.validation.order("toy", "black box")[:20]]
    x = judged.images.float() / 127.5 - 1
    hits = [
        (brightness(transform(one, x).numpy()).argmax(1) == judged.labels.numpy()) * 100.0 for one in (module, made)
    ]
    assert [record["before"], record["after"]] == [pytest.approx(one.mean()) for one in hits]
    assert record["gain_ci95"] == list(t_interval((hits[1] - hits[0]).tolist()))
    assert f"gain   {record['gain']:+6.2f}" in tuning_text(record)


def test_tunings_add_up_and_few_images_judge_as_many_as_there_are():
    data, module = toy_data(), fuse()
    with careful() as box:
        once, record = tune(module, box, data, replace(SHORT, judged=500, queries=1400))
    assert record["judged"] == len(data.validation) < 500
    assert f"of {len(data.validation)} validation images" in tuning_text(record)
    assert record["steps"] == (1400 - 2 * len(data.validation)) // 60
    once.trained["tuned"] = [{"queries": 1}]
    with careful(lambda x: brightness(x) - [0.0, 12.0]) as box:  # another chip
        twice, record = tune(once, box, data, SHORT)
    assert record["kept"] == "tuned"
    assert [one["queries"] for one in twice.trained["tuned"]] == [1, 2000]


def test_what_cannot_be_learned_from_is_refused_before_it_is_asked():
    data = toy_data()
    with (
        careful() as box,
        careful(lambda x: np.full((len(x), 2), np.nan), "call:nominal") as nominal,
        pytest.raises(AnswerError, match="call:nominal, the model without faults, must answer with numbers: got NaN"),
    ):
        tune(fuse(), box, data, SHORT, nominal=nominal)
    asked = Counting()
    with (
        careful(asked, budget=300) as box,
        pytest.raises(ConfigError, match="within the budget: got queries=2000 and budget=300. Lower --queries"),
    ):
        tune(fuse(), box, data, SHORT)
    with careful(asked) as box, pytest.raises(ConfigError, match="queries must be at least 100 for one step: got quer"):
        tune(fuse(), box, data, replace(SHORT, queries=30))
    assert asked.images == 0


def test_with_a_cache_nothing_is_asked_twice(tmp_path):
    data, tuning = toy_data(), replace(SHORT, queries=400)

    class Dying(Counting):
        def __call__(self, x):
            if self.images > 200:
                raise KeyboardInterrupt
            return super().__call__(x)

    with careful() as box:
        wanted, record = tune(fuse(), box, data, tuning)
    with pytest.raises(KeyboardInterrupt), careful(Dying(), cache=tmp_path / "answers.db") as box:
        tune(fuse(), box, data, tuning)
    counting = Counting()
    with careful(counting, cache=tmp_path / "answers.db") as box:
        made, again = tune(fuse(), box, data, tuning)
    assert 0 < counting.images < 400 - 150
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert {**record, "run": None} == {**again, "run": None}
    with (
        careful(cache=tmp_path / "answers.db", budget=counting.images) as box,
        pytest.raises(BudgetError, match="must be within the budget"),
    ):
        tune(fuse(), box, data, replace(tuning, seed=1))


def test_the_model_without_faults_stands_for_labels():
    data, seen = toy_data(), Counting()
    wrong = replace(data, **{name: replace(getattr(data, name), labels=1 - getattr(data, name).labels)
                             for name in ("train", "validation")})  # fmt: skip

    def right(x):
        return (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).astype(np.int64)  # the toy's true classes

    made = []
    for images in (data, wrong):
        with careful(seen) as box, careful(right, "call:nominal") as nominal:
            made.append(tune(fuse(), box, images, replace(SHORT, queries=400), images=30, nominal=nominal))
            assert nominal.asked <= 30 + 20
    (one, record), (other, again) = made
    assert record["history"] == again["history"] and record["after"] == again["after"]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert record["config"]["nominal"] == "call:nominal"
    with careful() as box:
        plain = tune(fuse(), box, data, replace(SHORT, queries=400), images=30)[1]
    assert plain["history"] == record["history"]  # labels and answers are the same here


def test_what_is_not_better_is_not_kept():
    module = fuse()
    with careful(lambda x: np.zeros(len(x), dtype=np.int64)) as box:
        made, record = tune(module, box, toy_data(), replace(SHORT, queries=200))
    assert record["gain"] == 0 and record["kept"] == "as it was"
    assert made.trained == module.trained
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in module.state_dict().items())


def test_losses():
    labels = torch.tensor([0, 1, 1])
    scores = np.array([[2.0, 0.0], [np.nan, 1.0], [500.0, 0.0]], dtype=np.float32)
    found = losses_of(Answers.of(scores, classes=2), labels)
    assert found[0] == pytest.approx(np.log1p(np.exp(-2)))
    assert found[1:].tolist() == [20.0, 20.0]  # nothing is worse than no number
    assert losses_of(Answers.of(np.array([0, 0, 1]), classes=2), labels).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judged": 0}, "judged must be at least 1"),
        ({"directions": 0}, "directions must be at least 1"),
        ({"sigma": 0.0}, "sigma must be above 0 and below 10: got sigma=0.0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_tunings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **options)


def test_tune_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "tuned_box.py").write_text("def answer(x):\n    return (x[:, 0, 0, 0] > 0).astype(int)\n")
    monkeypatch.chdir(tmp_path)
    fuse().save_pretrained(tmp_path / "fuse")
    command = ["tune", "fuse", "--base", "call:tuned_box:answer", "--queries", "300", "--judged", "20"]
    command += ["--step-images", "10", "--directions", "2", "--out", "tuned", "--images"]
    assert run([*command, "50", "--cache", "answers.db"]) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "tuned/tuning.json").read_text())
    assert "Wrote tuned." in shown and record["config"]["images"] == 50
    assert record["gain"] == pytest.approx(record["after"] - record["before"])
    assert NeuralFuse.from_pretrained(tmp_path / "tuned").name == "convs"
    fails(capsys, [*command, "99999"], "images must be in 0..1132: got images=99999")
    fails(capsys, ["tune", "fuse", "--base", "runs/base", "--out", "tuned"], "a black-box model must be a URL")
