"""Exported graphs that compute what the module computes, and ONNX files that are asked as black boxes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.graphs import logits, write_onnx
from helpers.modules import strong
from helpers.toy import toy_data
from neuralfuse.blackbox import LimitedBox, Limits, OnnxFile, open_box
from neuralfuse.cli.main import run
from neuralfuse.config import QatConfig
from neuralfuse.data import load_data
from neuralfuse.errors import AnswerError, ConfigError, FileFormatError, MissingExtraError, NeuralFuseError, ParityError
from neuralfuse.export import export
from neuralfuse.export.graph import FORMATS
from neuralfuse.faults import fault_model
from neuralfuse.nets import DeployedBase, load_base
from neuralfuse.pipeline import make_base, make_evaluation
from neuralfuse.ranges import InputRange
from neuralfuse.scoring import accuracy, plain_inputs

# Exported


@pytest.mark.parametrize("to", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_graph_takes_any_number_of_images_and_says_what_they_are(tmp_path, to):
    fuse = strong("unets", input_range="imagenet", fit="pad", image_size=(9, 9))
    record = export(fuse, tmp_path / "graph", to=to)
    assert record["bytes"] == (tmp_path / "graph").stat().st_size and max(record["differences"].values()) < 1e-5
    x = fuse.input_range.from_pixels(torch.rand(13, 3, 9, 9, generator=torch.Generator().manual_seed(0)))
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "graph")
        about = json.loads(session.get_modelmeta().custom_metadata_map["neuralfuse"])
        got = torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])
    else:
        extra = {"neuralfuse": ""}
        got = torch.export.load(tmp_path / "graph", extra_files=extra).module()(x)
        about = json.loads(extra["neuralfuse"])
    with torch.no_grad():
        assert torch.allclose(got, fuse(x), atol=1e-5)
    assert about["input_range"] == fuse.input_range.to_config() and about["generator"] == "unets"


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    fuse = strong()
    whole = FORMATS["torch"]

    def wrong(*arguments):
        runs = whole(*arguments)
        return lambda x: runs(x) + 1e-3 * (len(x) == 7)

    monkeypatch.setitem(FORMATS, "torch", wrong)
    with pytest.raises(ParityError, match=r"it differs by 0.001"):
        export(fuse, tmp_path / "graph", to="torch")
    assert not list(tmp_path.iterdir())
    with pytest.raises(NeuralFuseError, match="unknown format 'tflite'"):
        export(fuse, tmp_path / "graph", to="tflite")


def test_without_onnx_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'neuralfuse\[onnx\]'"):
        export(strong(), tmp_path / "graph")
    assert not list(tmp_path.iterdir())


class Widened(torch.nn.Module):
    """From [0, 1] to [-1, 1]."""

    def forward(self, x):
        return 2 * x - 1


@pytest.fixture(scope="module")
def digits_base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    config = QatConfig(epochs=3, batch=64)
    make_base("resnet8", load_data("digits"), config, out=folder, device=torch.device("cpu"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("generator", "input_range"), [("convs", "symmetric"), ("unets", "unit")])
def test_onnx_runtime_gives_the_accuracies_of_evaluate(digits_base, tmp_path, capsys, generator, input_range):
    """On 539 digits, before a model that loses a third of them: a graph that does something else would show.

    It is exported from the command line, whose user sees no warnings of the exporter.
    """
    import onnxruntime

    data, stuck = load_data("digits"), fault_model("stuck", ber=0.06)
    model = load_base(digits_base)
    if input_range == "unit":
        model = replace(
            model, module=torch.nn.Sequential(Widened(), model.module), input_range=InputRange.named("unit")
        )
    base = DeployedBase.of(model)
    fuse = strong(generator, channels=1, input_range=input_range)
    fuse.save_pretrained(tmp_path / "fuse")
    record = make_evaluation(fuse, base, data, stuck, chips=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(["export", str(tmp_path / "fuse"), "--out", str(tmp_path / "fuse.onnx")]) == 0
    assert "differs from PyTorch by at most" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "fuse.onnx")
    x = plain_inputs(data.test, base.deployed.input_range)
    made = torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])
    got = [accuracy(base.deployed.perturbed(chip), made, data.test.labels) for chip in stuck.chips(5)]
    assert got == [chip["pa_nf"] for chip in record["per_chip"]]
    assert sum(abs(one - chip["pa"]) > 1 for one, chip in zip(got, record["per_chip"], strict=True)) > 2


# Asked


@pytest.mark.slow
def test_an_onnx_file_answers_as_the_model(small_net, tmp_path):
    """As torch exports it."""
    made = torch.onnx.export(
        small_net, (torch.zeros(2, 1, 8, 8),), dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), input_names=["image"], output_names=["logits"],
    )  # fmt: skip
    made.save(tmp_path / "net.onnx")
    box = open_box(str(tmp_path / "net.onnx"))
    assert isinstance(box, OnnxFile)
    x = plain_inputs(toy_data().test, InputRange())
    with torch.no_grad():
        assert np.allclose(box.ask(x.numpy()), small_net(x).numpy(), atol=1e-4)
    with pytest.raises(AnswerError, match="must take"):
        box.ask(np.zeros((1, 3, 8, 8), dtype=np.float32))
    with pytest.raises(FileFormatError, match="--output-name must be one of the model's outputs: logits. Got probs"):
        OnnxFile(tmp_path / "net.onnx", output_name="probs")


def levels(count: int) -> torch.Tensor:
    """Inputs on [-1, 1] that are levels of 256, neither square nor of one channel."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 6, 8), dtype=torch.uint8, generator=draw).float() / 127.5 - 1


def test_answers_are_those_of_one_output_and_of_the_weights_beside_the_file(tmp_path):
    two, x, found = write_onnx(tmp_path / "two.onnx", both=True), levels(5), {}
    for name in ("good", "bad", "good"):  # one cache, two outputs
        box = OnnxFile(two, output_name=name)
        with LimitedBox(box, classes=4, limits=Limits(cache=tmp_path / "answers.db")) as careful:
            found[name] = careful(x).scores
    assert torch.allclose(found["good"], -found["bad"], atol=1e-5)
    assert np.allclose(found["good"].numpy(), logits(x.numpy()), atol=1e-4)
    two = write_onnx(tmp_path / "out" / "two.onnx", both=True, beside=True)
    first = OnnxFile(two, output_name="good")
    assert np.allclose(first.ask(x.numpy()), found["good"].numpy(), atol=1e-5)
    weights = next(path for path in (tmp_path / "out").iterdir() if path.name != "two.onnx")
    data = bytearray(weights.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    weights.write_bytes(data)
    assert OnnxFile(two, output_name="good").key != first.key
    (tmp_path / "broken.onnx").write_bytes(b"\x00" * 40)
    with pytest.raises(FileFormatError, match="must be an ONNX file"):
        OnnxFile(tmp_path / "broken.onnx")


@pytest.mark.parametrize(
    ("kind", "last"), [("FLOAT16", False), ("DOUBLE", True), ("UINT8", False), ("UINT8", True), ("FLOAT", True)]
)
def test_an_onnx_file_gets_images_as_it_wants_them(tmp_path, kind, last):
    x = levels(20)
    box = open_box(str(write_onnx(tmp_path / "net.onnx", kind, last=last)), layout="nhwc" if last else "nchw")
    wanted = logits((x.half().float() if kind == "FLOAT16" else x).numpy())
    assert np.allclose(box.ask(x.numpy()), wanted, atol=1e-3)
    assert box.options == ({"layout": "nhwc"} if last else {})
    with pytest.raises(ConfigError, match="--layout must go with a server or an ONNX file"):
        open_box("call:math:sqrt", layout="nhwc")
