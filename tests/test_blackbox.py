"""Models that only answer: what their answers say, how they are asked, what a NeuralFuse is worth before them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.cli import fails
from helpers.servers import Server
from helpers.toy import toy_data
from neuralfuse.blackbox import Answers, Box, Function, LimitedBox, Limits, Served, choose, judge, open_box
from neuralfuse.blackbox.choose import choice_text, round_sizes
from neuralfuse.cli.blackbox import BoxOptions
from neuralfuse.cli.main import run
from neuralfuse.data import Split
from neuralfuse.errors import (
    AnswerError,
    BudgetError,
    BusyError,
    ConfigError,
    NeuralFuseError,
    OutputError,
)
from neuralfuse.evaluation import t_interval
from neuralfuse.faults import Chip, fault_model
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import load_base
from neuralfuse.ranges import InputRange
from neuralfuse.scoring import accuracy, plain_inputs, transform

LOGITS = np.array([[0.5, 2.0, -1.0], [3.0, np.nan, 0.0]], dtype=np.float32)


def test_answers_say_what_they_are():
    logits = Answers.of(LOGITS, classes=3)
    assert logits.kind == "logits" and logits.labels.tolist() == [1, -1] and logits.scores.shape == (2, 3)
    said = Answers.of(np.array([[0.25, 0.75, 0.0]]), classes=3, kind="probabilities")
    assert said.scores[0, :2].exp().tolist() == pytest.approx([0.25, 0.75]) and said.scores.isfinite().all()
    assert Answers.of(np.array([2, 0]), classes=3).labels.tolist() == [2, 0]
    assert Answers.of(np.array([[2], [0]]), classes=3).kind == "labels"
    top = Answers.of(np.array([[2, 1], [0, 2]]), classes=3)
    assert top.kind == "top-k" and top.labels.tolist() == [2, 0] and top.scores is None
    assert Answers.of(np.array([[2, 1, 0]]), classes=3, kind="logits").labels.tolist() == [0]
    assert Answers.of(np.array([[3, 1]]), classes=4).right(torch.tensor([3])).tolist() == [True]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (np.zeros((2, 4)), None, "one number per class, 3 per image: got float64 of shape"),
        (np.zeros((2, 1, 3)), None, "one row of numbers per image"),
        (np.array(["a"]), None, "one row of numbers per image"),
        (np.array([3]), None, r"labels must be whole numbers in 0\.\.2"),
        (np.array([[-1, 2]]), None, r"top-k must be whole numbers in 0\.\.2"),
        (np.array([[1.0, 2.0]]), "top-k", "top-k must be whole numbers"),
        (np.array([[1, 2]]), "labels", "labels must be whole numbers"),
        (np.array([[0.5, 2.0, -1.0]]), "probabilities", r"must be in \[0, 1\]: got -1\.\.2"),
    ],
)
def test_what_is_no_answer_is_refused(values, kind, message):
    with pytest.raises(AnswerError, match=message):
        Answers.of(values, classes=3, kind=kind)


class Model(Box):
    """Answers with the mean of an image's channels; remembers what it was asked, and fails as it is told."""

    name = "model"

    def __init__(self, *failures: Exception | None) -> None:
        self.asked: list[int] = []
        self.failures = list(failures)

    def ask(self, x):
        self.asked.append(len(x))
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return x.mean((2, 3))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_no_question_is_asked_twice(tmp_path):
    x, limits = images(10), Limits(cache=tmp_path / "below" / "answers.db", batch=4)
    first, model = Model(), Model()
    with LimitedBox(first, classes=3, limits=limits) as careful:
        answers = careful(torch.cat([x, x[:3]]))
        assert first.asked == [4, 4, 2] and (careful.asked, careful.found) == (10, 3)
    assert torch.allclose(answers.scores, torch.cat([x, x[:3]]).mean((2, 3)), atol=1e-6)
    with LimitedBox(model, classes=3, limits=limits) as careful:
        again = careful(torch.cat([x[5:], images(2, seed=1)]))
        assert model.asked == [2]
    assert torch.equal(again.scores[:5], answers.scores[5:10])
    other = Model()
    other.name = "other"
    with LimitedBox(other, classes=3, limits=limits) as careful:
        careful(x)
    assert sum(other.asked) == 10


def test_an_interrupted_run_has_lost_nothing(tmp_path):
    limits = Limits(cache=tmp_path / "answers.db", batch=4)
    stopped = Model(None, KeyboardInterrupt())
    with LimitedBox(stopped, classes=3, limits=limits) as careful, pytest.raises(KeyboardInterrupt):
        careful(images(10))
    model = Model()
    with LimitedBox(model, classes=3, limits=limits) as careful:
        careful(images(10))
    assert model.asked == [4, 2]


def test_the_budget_holds_over_runs_and_counts_every_try(tmp_path):
    limits = Limits(cache=tmp_path / "answers.db", batch=4, budget=12)
    model = Model(BusyError("busy"))
    with LimitedBox(model, classes=3, limits=limits, sleep=lambda seconds: None) as careful:
        careful(images(4))
        with pytest.raises(BudgetError, match="5 images must be within the budget: 4 of 12 are left"):
            careful(images(5, seed=1))
        assert model.asked == [4, 4] and careful.tried_again == 1
    with LimitedBox(model, classes=3, limits=limits) as careful:
        careful(images(4))
        careful(images(4, seed=2))
        with pytest.raises(BudgetError, match="0 of 12 are left"):
            careful(images(1, seed=3))
    model = Model(*[BusyError("busy")] * 9)
    limits = Limits(batch=4, budget=10, retries=9)
    with LimitedBox(model, classes=3, limits=limits, sleep=lambda seconds: None) as careful:
        with pytest.raises(BudgetError, match="must cover retries, too"):
            careful(images(4))
        assert model.asked == [4, 4]


def test_a_function_of_one_s_own_is_asked_again_when_it_says_so():
    troubles = [ConnectionResetError("reset"), TimeoutError("slow"), BusyError("full", after=3.0)]

    def answer(x):
        if troubles:
            raise troubles.pop(0)
        return np.zeros(len(x), dtype=np.int64)

    waits = []
    with LimitedBox(Function(answer, "call:mine"), classes=3, sleep=waits.append) as careful:
        assert careful(images(2)).labels.tolist() == [0, 0]
        assert waits == [0.5, 1.0, 3.0]
    troubles += [TimeoutError("slow")] * 2
    with (
        LimitedBox(Function(answer, "call:mine"), classes=3, limits=Limits(retries=1), sleep=waits.append) as careful,
        pytest.raises(BusyError, match="call:mine must answer: it raised TimeoutError: slow"),
    ):
        careful(images(2))


def test_a_full_or_busy_disk_is_not_called_a_bad_file(tmp_path, monkeypatch):
    cache, connect = tmp_path / "answers.db", sqlite3.connect

    def connect_to_a_small_disk(*given, **options):
        base = connect(*given, **options)
        base.execute("PRAGMA max_page_count = 8")
        return base

    monkeypatch.setattr(sqlite3, "connect", connect_to_a_small_disk)
    with LimitedBox(Model(), classes=3, limits=Limits(cache=cache)) as careful:
        careful(images(2))
        with pytest.raises(OutputError, match="--cache .*answers.db must be writable: database or disk is full"):
            careful(images(500, seed=1))
    monkeypatch.undo()
    with LimitedBox(Model(), classes=3, limits=Limits(cache=cache)) as careful:
        careful(images(2))
        assert careful.found == 2


def test_what_may_pass_is_tried_again_with_longer_and_longer_waits():
    waits = []
    model = Model(BusyError("busy"), BusyError("busy", after=7.0), BusyError("busy"))
    with LimitedBox(model, classes=3, sleep=waits.append) as careful:
        careful(images(2))
        assert waits == [0.5, 7.0, 2.0] and careful.tried_again == 3
    model, limits = Model(*[BusyError("still busy")] * 3), Limits(retries=2)
    with (
        LimitedBox(model, classes=3, limits=limits, sleep=waits.append) as careful,
        pytest.raises(BusyError, match="still"),
    ):
        careful(images(2))
    model = Model(AnswerError("no such input"))
    with LimitedBox(model, classes=3, sleep=waits.append) as careful, pytest.raises(AnswerError):
        careful(images(2))
    assert model.asked == [2]


def test_no_more_images_a_second_than_allowed():
    now, waits = [100.0], []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    with LimitedBox(
        Model(), classes=3, limits=Limits(batch=4, per_second=8), clock=lambda: now[0], sleep=sleep
    ) as careful:
        careful(images(10))
        assert waits == [0.5, 0.5]
        now[0] += 10
        careful(images(4, seed=1))
        assert waits == [0.5, 0.5]


def test_limits_and_caches_that_cannot_be(tmp_path):
    for name, value in (("budget", -1), ("per_second", -1.0), ("retries", -1), ("batch", 0)):
        with pytest.raises(ConfigError, match=f"{name} must be at least"):
            Limits(**{name: value})
    (tmp_path / "text.db").write_text("no database, but long enough to be one" * 9)
    with pytest.raises(NeuralFuseError, match="must be a cache of answers"):
        LimitedBox(Model(), classes=3, limits=Limits(cache=tmp_path / "text.db"))
    with LimitedBox(Function(lambda x: np.zeros((len(x), 3)), "f"), classes=4) as careful, pytest.raises(AnswerError):
        careful(images(1))
    cache = tmp_path / "answers.db"
    for classes in (3, 2):
        model = Function(lambda x, k=classes: np.zeros((len(x), k)), "f")
        with LimitedBox(model, classes=classes, limits=Limits(cache=cache)) as careful:
            if classes == 3:
                careful(images(2))
                continue
            with pytest.raises(AnswerError, match="all images in the same form"):
                careful(images(3))
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as foreign, foreign:
        foreign.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, other BLOB)")
    limits = Limits(cache=tmp_path / "foreign.db")
    with (
        LimitedBox(Model(), classes=3, limits=limits) as careful,
        pytest.raises(NeuralFuseError, match="a cache of answers"),
    ):
        careful(images(1))
    with closing(sqlite3.connect(cache)) as kept:
        assert kept.execute("SELECT COUNT(*) FROM answers").fetchone() == (3,)


@pytest.fixture(scope="module")
def chip(toy_base):
    """A faulty model, the same without faults, and a module that changes its inputs."""
    data, model = toy_data(), load_base(toy_base)
    base = deploy(model.module, scheme=model.scheme)
    fuse = NeuralFuse("convs", channels=1, image_size=(8, 8), seed=1).eval()
    return data, model, base, fuse


def as_function(model):
    def answer(x):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()

    return answer


def test_a_judgement_is_that_of_the_model_itself(chip):
    data, _, base, fuse = chip
    faulty = base.perturbed(Chip(fault_model("stuck", ber=0.05), seed=3))
    x, labels = plain_inputs(data.test, base.input_range), data.test.labels
    with (
        LimitedBox(Function(as_function(faulty), "chip 3"), classes=2) as box,
        LimitedBox(Function(as_function(base), "nominal"), classes=2) as nominal,
    ):
        record = judge(fuse, box, data, nominal=nominal)
        alone = judge(None, box, data, images=7)
    assert record["pa"] == pytest.approx(accuracy(faulty, x, labels))
    assert record["pa_nf"] == pytest.approx(accuracy(faulty, transform(fuse, x), labels))
    assert record["ca"] == pytest.approx(accuracy(base, x, labels))
    assert record["ca_nf"] == pytest.approx(accuracy(base, transform(fuse, x), labels))
    hits = [(faulty(part).argmax(1) == labels).double() * 100 for part in (x, transform(fuse, x))]
    assert record["rp_ci95"] == pytest.approx(list(t_interval((hits[1] - hits[0]).tolist())))
    assert alone["images"] == 7 and alone["pa_nf"] is None and alone["rp"] is None
    assert box.found == 7  # they were among those asked before
    with pytest.raises(ConfigError, match="the same input range"):
        judge(fuse, box, data, input_range=InputRange.named("unit"))
    with pytest.raises(ConfigError, match="the shape that the NeuralFuse was made for"):
        judge(NeuralFuse("convs", channels=1, image_size=(16, 16), seed=1).eval(), box, data)
    with pytest.raises(ConfigError, match=r"images must be in 0\.\."):
        judge(fuse, box, data, images=10**6)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "UINT8"])
def test_a_server_is_asked_in_its_own_words(upstream, request, binary, datatype):
    address, made = upstream(binary=binary, datatype=datatype)
    box = open_box(f"{address}/versions/2", token="secret")
    assert isinstance(box, Served)
    request.addfinalizer(box.close)
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = InputRange().from_bytes(pixels)
    if datatype == "FP16" and not binary:
        x = x.half().float()
    got = box.ask(x.numpy())
    wanted = pixels.float().mean((2, 3)) if datatype == "UINT8" else x.mean((2, 3))
    assert np.allclose(got, wanted.numpy(), atol=1e-3)
    assert made.seen[0]["Authorization"] == "Bearer secret"


def probabilities(x):
    scores = np.exp(x.mean((2, 3)))
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda x: x.mean((2, 3)), None),
        (probabilities, "probabilities"),
        (lambda x: np.argsort(-x.mean((2, 3)), axis=1)[:, :2], None),
        (lambda x: x.mean((2, 3)).argmax(1)[:, None], "labels"),
        (lambda x: x.mean((2, 3)).argmax(1), None),
    ],
    ids=["logits", "probabilities", "top-k", "labels", "labels in a row"],
)
def test_whatever_a_server_answers_with_it_is_as_right(upstream, answer, kind):
    address, _ = upstream(model=staticmethod(answer))
    x, labels = images(30), torch.arange(30) % 3
    with LimitedBox(open_box(address), classes=3, kind=kind) as careful:
        assert careful(x).right(labels).tolist() == (x.mean((2, 3)).argmax(1) == labels).tolist()


def test_a_server_may_want_the_channels_last(upstream):
    address, _ = upstream(model=staticmethod(lambda x: x.mean((1, 2))))
    x = images(5).numpy()
    with closing(open_box(address, layout="nhwc")) as box, closing(open_box(address)) as other:
        assert np.allclose(box.ask(x), x.mean((2, 3)), atol=1e-5)
        assert box.key != other.key


def test_a_server_that_starts_is_waited_for(upstream, capsys):
    address, made = upstream()
    starting = [503, 404, 400, 404, 200, 400]  # of the model's metadata; then also of the server and the model, ready?

    def about(self):
        if starting:
            return self.answer({"error": "not yet"}, starting.pop(0))
        return Server.do_GET(self)

    made.do_GET = about
    waits = []
    box = BoxOptions(retries=3).open(address, 3, InputRange(), sleep=waits.append)
    said = capsys.readouterr().err
    assert waits == [0.5, 1.0, 2.0]
    assert said.count("Retrying in") == 3 and "503" in said and "must report that it is ready: got 400" in said
    made.troubles.append((400, {}))  # it lies: its model is not there yet
    starting += [200, 400]
    assert box(images(2)).labels.shape == (2,) and box.tried_again == 1 and waits[3:] == [0.5]
    box.close()
    starting += [503] * 3
    with pytest.raises(BusyError, match="503"):
        BoxOptions(retries=2).open(address, 3, InputRange(), sleep=waits.append)
    assert waits[4:] == [0.5, 1.0]


def test_a_server_in_trouble_is_asked_again_or_not(upstream):
    waits = []
    address, made = upstream(troubles=[(503, {}), (429, {"Retry-After": "3"})])
    with LimitedBox(open_box(address), classes=3, sleep=waits.append) as careful:
        careful(images(2))
    assert waits == [0.5, 3.0] and len(made.seen) == 3
    address, made = upstream(troubles=[(400, {})])
    refused = pytest.raises(AnswerError, match=r"must answer: got 400 .*not now")
    with LimitedBox(open_box(address), classes=3, sleep=waits.append) as careful, refused:
        careful(images(2))
    assert len(made.seen) == 1
    with pytest.raises(AnswerError, match="404 .*no such model"):
        open_box(address.replace("net", "other"))
    with pytest.raises(AnswerError, match="must have an address http://HOST:PORT/v2/models/NAME"):
        open_box("http://127.0.0.1:1/predict")
    with pytest.raises(AnswerError, match="must be a valid address"):
        open_box("http://host:abc/v2/models/net")
    with pytest.raises(ConfigError, match="timeout must be in"):
        open_box(address, timeout=-1.0)
    with pytest.raises(BusyError, match="must be reachable"):
        open_box("http://127.0.0.1:1/v2/models/net")
    address, _ = upstream(datatype="BYTES")
    with pytest.raises(AnswerError, match="must take one of FP16, FP32, FP64, UINT8: image is BYTES"):
        open_box(address)
    address, _ = upstream(model=staticmethod(lambda x: x.mean((2, 3))[:1]))
    with LimitedBox(open_box(address), classes=3) as careful, pytest.raises(AnswerError, match="one row of numbers"):
        careful(images(3))
    with pytest.raises(AnswerError, match="--output-name must be one of the outputs"):
        open_box(address, output_name="probs")


def test_evaluate_asks_a_black_box(toy_base, tmp_path, monkeypatch, capsys):
    from neuralfuse.data import load_data

    data = load_data("digits")
    code = "def answer(x):\n    return (x[:, 0, 0, 0] > 0).astype(int)\ndef bad(x):\n    return 1 / 0\n"
    (tmp_path / "boxes.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "--base", "call:boxes:answer", "--images", "50", "--cache", "answers.db"]
    assert run([*command, "--out", "record.json", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert run([*command, "--answers", "top-k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pa"] == record["pa"]
    assert run([*command, "--answers", "probabilities"]) == 2
    assert "probabilities must be one number per class, 10 per image" in capsys.readouterr().err
    x = plain_inputs(data.test, InputRange())
    rows = data.test.order("digits", "black box")[:50]
    right = (x[rows, 0, 0, 0] > 0) == data.test.labels[rows]
    assert record["pa"] == pytest.approx(100 * float(right.double().mean()))
    assert run([*command, "--nominal", "call:boxes:answer"]) == 0
    shown = capsys.readouterr()
    assert "0 images sent, 100 from the cache" in shown.out and f"{record['pa']:.2f}" in shown.out
    for option in ("--ber 0.01", "--confidence .5", "--bits 4", "--no-fold", "--published-chips", "--resume"):
        left_out = f"{option.split()[0]} must be left out: call:boxes:answer is a black-box model"
        fails(capsys, [*command, *option.split()], left_out)
    fails(capsys, ["evaluate", "--base", str(toy_base), "--ber", "0.1", "--budget", "3"], "--budget must go with")
    assert run(["evaluate", "--base", "call:boxes:bad"]) == 2
    assert "call:boxes:bad must answer: it raised ZeroDivisionError" in capsys.readouterr().err
    assert run([*command, "--nominal", str(toy_base)]) == 2
    assert "a black-box model must be a URL, FILE.onnx or call:module:function" in capsys.readouterr().err


class Shift:
    """Stands for a NeuralFuse that adds a number to every pixel."""

    def __init__(self, amount: float) -> None:
        self.amount, self.scale, self.trained = amount, torch.ones(1), {"amount": amount}
        self.input_range, self.channels, self.image_size = InputRange(), 1, (8, 8)

    def __call__(self, x):
        return x + self.amount


def test_the_better_half_goes_on():
    """Images all of whose pixels are one number: right where the number, after the shift, is over a bound."""
    data = toy_data(count=400)
    levels = torch.linspace(0, 255, len(data.validation))
    flat = Split(levels.byte()[:, None, None, None].expand(-1, 1, 8, 8).contiguous(), torch.ones(len(levels)).long())
    data = replace(data, validation=flat)
    seen = []

    def answer(x):
        seen.append(len(x))
        return (x[:, 0, 0, 0] > 0.5).astype(int)

    fuses = {f"by {amount}": Shift(amount) for amount in (0.1, 0.2, 0.3, 0.4, 0.0)}
    with LimitedBox(Function(answer, "bound"), classes=2, limits=Limits(batch=1000)) as box:
        record = choose(fuses, box, data)
    most = len(flat)
    assert [one["images"] for one in record["rounds"]] == round_sizes(5, most) == [max(16, most // 4), most // 2, most]
    assert [len(one["accuracy"]) for one in record["rounds"]] == [5, 3, 2]
    assert record["best"] == "by 0.4" and next(iter(record["rounds"][1]["accuracy"])) == "by 0.4"
    x = plain_inputs(flat[flat.order("toy", "choosing")], InputRange())[:, 0, 0, 0]
    gains = 100 * ((x + 0.4 > 0.5).double() - (x > 0.5).double())
    assert record["gain"] == pytest.approx(float(gains.mean()))
    assert record["gain_ci95"] == pytest.approx(list(t_interval(gains.tolist())))
    assert box.found > 0  # earlier rounds' images are not asked about again
    with LimitedBox(Function(answer, "bound"), classes=2, limits=Limits(batch=1000)) as box:
        harmful = choose({"darker": Shift(-0.2), "darkest": Shift(-0.4)}, box, data)
    assert (harmful["best"], harmful["best_fuse"]) == ("none", "darker") and harmful["gain"] < 0
    assert f"best: no NeuralFuse; best NeuralFuse: darker, {harmful['gain']:+.1f} points" in choice_text(harmful)
    with pytest.raises(ConfigError, match="at least one NeuralFuse must be given"):
        choose({}, box, data)
    with pytest.raises(ConfigError, match="must not be the name"):
        choose({"none": Shift(0.0)}, box, data)
    assert round_sizes(1, 300) == [300] and round_sizes(2, 300) == [300] and round_sizes(3, 10) == [10, 10]


WRONG_ABOUT_WHAT_IT_KNOWS = """
from neuralfuse.data import load_data

split = load_data("digits").validation
known = split.images.numpy().reshape(len(split), -1) / 127.5 - 1

def answer(x):
    far = ((x.reshape(len(x), 1, -1) - known) ** 2).sum(2)
    return (split.labels.numpy()[far.argmin(1)] + (far.min(1) < 1e-6)) % 10
"""


def test_choose_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "boxes.py").write_text("def answer(x):\n    return (x[:, 0, 0, 0] > 0).astype(int)\n")
    monkeypatch.chdir(tmp_path)
    for name in ("convs", "unets"):
        NeuralFuse(name, channels=1, image_size=(8, 8), seed=1).eval().save_pretrained(tmp_path / name)
    command = ["choose", "convs", "unets", "--base", "call:boxes:answer", "--images", "40"]
    assert run([*command, "--keep", "best", "--out", "choice.json"]) == 0
    shown = capsys.readouterr().out
    record = json.loads((tmp_path / "choice.json").read_text())
    assert record["best"] == "none" and record["gain"] == 0
    assert "best: no NeuralFuse; best NeuralFuse: convs, +0.0 points" in shown
    assert not (tmp_path / "best").exists()
    (tmp_path / "better.py").write_text(WRONG_ABOUT_WHAT_IT_KNOWS)
    assert run([*command[:-3], "call:better:answer", "--keep", "best", "--out", "choice.json"]) == 0
    record = json.loads((tmp_path / "choice.json").read_text())
    assert f"best: {record['best']}, +" in capsys.readouterr().out
    kept, best = (NeuralFuse.from_pretrained(tmp_path / name) for name in ("best", record["best"]))
    assert kept.name == best.name
    fails(capsys, ["choose", "--base", "call:boxes:answer"], "at least one NeuralFuse must be given")
    fails(capsys, [*command, "--nominal", "call:boxes:answer"], "--nominal must be left out")
