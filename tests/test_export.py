"""Files and arrays transformed as the module does it; exported graphs that compute what the module computes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import toy_data
from neuralfuse.cli.main import run
from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import load_data
from neuralfuse.errors import DataError, MissingExtraError, NeuralFuseError, OutputError, ParityError
from neuralfuse.export import apply_array, apply_folder, export
from neuralfuse.export.apply import BATCH
from neuralfuse.export.graph import FORMATS
from neuralfuse.faults import Stuck, fault_model
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets import DeployedBase, load_base
from neuralfuse.pipeline import make_base, make_evaluation, make_fuse
from neuralfuse.ranges import InputRange
from neuralfuse.scoring import accuracy, plain_inputs
from test_cli import fails


def strong(name: str = "convs", **options) -> NeuralFuse:
    """A module that changes images a lot: its last convolution is enlarged."""
    fuse = NeuralFuse(name, seed=3, **{"channels": 3, "image_size": (8, 8), **options}).eval()
    with torch.no_grad():
        [*fuse.generator.parameters()][-1].add_(0.4)
    return fuse


def pixels(count: int, channels: int = 3, size: int = 8) -> np.ndarray:
    return np.random.RandomState(7).randint(0, 256, (count, size, size, channels), dtype=np.uint8)


def picture(image: np.ndarray, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path)


def by_hand(fuse: NeuralFuse, images: np.ndarray) -> np.ndarray:
    """One image at a time, in float64 but for the module."""
    made = []
    mean, std = np.array(fuse.input_range.mean), np.array(fuse.input_range.std)
    for image in images:
        x = torch.from_numpy((image / 255.0 - mean) / std).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            y = fuse(x)[0].permute(1, 2, 0).numpy().astype(np.float64)
        made.append(np.clip(np.round(255 * (y * std + mean)), 0, 255))
    return np.stack(made).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("space", ["symmetric", "unit"])
def test_a_folder_is_transformed_image_by_image(tmp_path, channels, space):
    fuse, images = strong(channels=channels, input_range=space), pixels(5, channels)
    for place, image in enumerate(images):
        picture(image, tmp_path / "in" / f"class{place % 2}" / f"{place}.png")
    picture(images[0], tmp_path / "in" / ".cache" / "0.png")
    assert apply_folder(fuse, tmp_path / "in", tmp_path / "out") == 5
    wanted = by_hand(fuse, images)
    assert (wanted != images).mean() > 0.5
    for place in range(5):
        got = np.asarray(Image.open(tmp_path / "out" / f"class{place % 2}" / f"{place}.png")).reshape(images[0].shape)
        assert np.abs(got.astype(int) - wanted[place]).max() <= 1  # a value half-way between two levels
        assert (got == wanted[place]).mean() > 0.99
    assert len(list((tmp_path / "out").rglob("*.png"))) == 5


class Stop(Exception):
    pass


def stop_after(batches: int):
    def progress(done: int, total: int) -> None:
        if done >= batches * BATCH:
            raise Stop

    return progress


def test_an_interrupted_folder_goes_on_to_the_same_bytes(tmp_path):
    fuse = strong()
    for place, image in enumerate(pixels(2 * BATCH + 3)):
        picture(image, tmp_path / "in" / f"{place:03}.png")
    apply_folder(fuse, tmp_path / "in", tmp_path / "whole")
    with pytest.raises(Stop):
        apply_folder(fuse, tmp_path / "in", tmp_path / "out", progress=stop_after(1))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert len(kept) == BATCH
    seen = []
    apply_folder(fuse, tmp_path / "in", tmp_path / "out", resume=True, progress=lambda *at: seen.append(at))
    assert seen[-1] == (2 * BATCH + 3, 2 * BATCH + 3)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    for resume in (True, False):  # another module, other images: nothing is mixed
        with pytest.raises(OutputError, match="must be new, empty or from the same NeuralFuse and images"):
            apply_folder(strong("unets"), tmp_path / "in", tmp_path / "out", resume=resume)
    picture(pixels(1)[0], tmp_path / "in" / "one more.png")
    with pytest.raises(OutputError, match="must be new, empty or from the same NeuralFuse and images"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "out", resume=True)


def test_images_of_another_size_are_refused_or_resized(tmp_path):
    fuse = strong()
    picture(pixels(1, size=12)[0], tmp_path / "in" / "large.png")
    with pytest.raises(DataError, match=r"must be 8x8, .*large.png is 12x12. Pass --resize"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "out")
    apply_folder(fuse, tmp_path / "in", tmp_path / "out", resize=True)
    with Image.open(tmp_path / "out" / "large.png") as made:
        assert made.size == (8, 8)


def test_what_a_folder_may_not_be(tmp_path):
    fuse, one = strong(), pixels(1)[0]
    with pytest.raises(DataError, match="neither"):
        apply_folder(fuse, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="must hold images"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "out")
    picture(one, tmp_path / "in" / "a.png")
    with pytest.raises(NeuralFuseError, match="must not lie in the source folder"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "in" / "out")
    picture(one, tmp_path / "mine" / "b.png")
    with pytest.raises(OutputError, match="it holds other files"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "mine")
    picture(one, tmp_path / "in" / "a.bmp")
    with pytest.raises(DataError, match=r"must not both become .*a.png"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.bmp").unlink()
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / "in" / "wide.png")
    with pytest.raises(DataError, match="must have 8 bits per channel"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "wide.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot read image"):
        apply_folder(fuse, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_array_comes_out_as_it_went_in(tmp_path, kind, layout):
    fuse, images = strong(input_range="imagenet"), pixels(BATCH + 2)
    x = images
    if kind is np.float32:
        mean, std = (np.array(values) for values in (fuse.input_range.mean, fuse.input_range.std))
        x = ((images / 255.0 - mean) / std).astype(np.float32)
    order = (0, 3, 1, 2) if layout == "nchw" else (0, 1, 2, 3)
    np.save(tmp_path / "in.npy", x.transpose(order))
    assert apply_array(fuse, tmp_path / "in.npy", tmp_path / "out.npy", layout=layout) == len(x)
    got = np.load(tmp_path / "out.npy", allow_pickle=False)
    assert got.dtype == kind and got.shape == x.transpose(order).shape
    got = got.transpose(0, 2, 3, 1) if layout == "nchw" else got
    if kind is np.uint8:
        assert (got == by_hand(fuse, images)).mean() > 0.99
    else:
        with torch.no_grad():
            wanted = fuse(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).permute(0, 2, 3, 1).numpy()
        assert np.allclose(got, wanted, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "out.npy"]


def test_an_interrupted_array_goes_on_to_the_same_bytes(tmp_path):
    fuse = strong()
    np.save(tmp_path / "in.npy", pixels(3 * BATCH - 5).transpose(0, 3, 1, 2))
    apply_array(fuse, tmp_path / "in.npy", tmp_path / "whole.npy")
    with pytest.raises(Stop):
        apply_array(fuse, tmp_path / "in.npy", tmp_path / "out.npy", progress=stop_after(2))
    assert not (tmp_path / "out.npy").exists()
    seen = []
    apply_array(fuse, tmp_path / "in.npy", tmp_path / "out.npy", resume=True, progress=lambda *at: seen.append(at[0]))
    assert seen == [3 * BATCH - 5]
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    with pytest.raises(Stop):
        apply_array(fuse, tmp_path / "in.npy", tmp_path / "out.npy", progress=stop_after(1))
    with pytest.raises(NeuralFuseError, match="must come with the same NeuralFuse"):
        apply_array(strong("unets"), tmp_path / "in.npy", tmp_path / "out.npy", resume=True)
    with pytest.raises(Stop):  # begun anew and stopped before its first batch: what the older run noted is gone
        apply_array(Stopping(), tmp_path / "in.npy", tmp_path / "out.npy")
    apply_array(fuse, tmp_path / "in.npy", tmp_path / "out.npy", resume=True)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    with pytest.raises(Stop):
        apply_array(fuse, tmp_path / "in.npy", tmp_path / "out.npy", progress=stop_after(1))
    whole = (tmp_path / ".out.npy.partial").read_bytes()
    for damaged, message in (
        (whole[:-1], "cannot resume from"),
        (whole.replace(b"|u1", b"|i1", 1), "must find a file of"),
    ):
        (tmp_path / ".out.npy.partial").write_bytes(damaged)
        with pytest.raises(NeuralFuseError, match=message):
            apply_array(fuse, tmp_path / "in.npy", tmp_path / "out.npy", resume=True)


class Stopping(NeuralFuse):
    """Is interrupted as soon as it is called."""

    def __init__(self) -> None:
        super().__init__("convs", image_size=(8, 8), seed=0)

    def forward(self, x):
        raise Stop


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 8, 8)), "must be uint8 .* or float32 .*: got float64"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), r"must have shape \(N, 3, 8, 8\) with --layout nchw"),
        (np.zeros((0, 3, 8, 8), dtype=np.uint8), r"must have shape"),
        (np.full((2, 3, 8, 8), 200, dtype=np.float32), "Pixels in 0..255 must be stored as uint8"),
        (np.full((2, 3, 8, 8), np.nan, dtype=np.float32), "values must be model inputs"),
        (np.array([{}], dtype=object), "cannot read"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path, array, message):
    np.save(tmp_path / "in.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        apply_array(strong(), tmp_path / "in.npy", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("to", list(FORMATS))
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small base model and a NeuralFuse for it, on disk."""
    folder, data = tmp_path_factory.mktemp("trained"), toy_data()
    cpu = torch.device("cpu")
    make_base("resnet8", data, QatConfig(epochs=4, batch=16, lr=0.05, augment="none"), out=folder / "base", device=cpu)
    base = DeployedBase.of(load_base(folder / "base"))
    eopm = EopmConfig(epochs=2, batch=16, n_chips=2)
    make_fuse("convs", [base], data, eopm, faults=Stuck(ber=0.04), out=folder / "fuse", device=cpu)
    return folder, base, data


class Widened(torch.nn.Module):
    """From [0, 1] to [-1, 1]."""

    def forward(self, x):
        return 2 * x - 1


@pytest.mark.parametrize(("generator", "input_range"), [("convs", "symmetric"), ("unets", "unit")])
def test_onnx_runtime_gives_the_accuracies_of_evaluate(tmp_path, generator, input_range):
    """On 539 digits, before a model that loses a third of them: a graph that does something else would show."""
    import onnxruntime

    data, cpu, stuck = load_data("digits"), torch.device("cpu"), fault_model("stuck", ber=0.06)
    make_base("resnet8", data, QatConfig(epochs=3, batch=64), out=tmp_path / "base", device=cpu)
    model = load_base(tmp_path / "base")
    if input_range == "unit":
        model = replace(
            model, module=torch.nn.Sequential(Widened(), model.module), input_range=InputRange.named("unit")
        )
    base = DeployedBase.of(model)
    eopm = EopmConfig(epochs=2, batch=64, lr=4e-3, n_chips=2)
    make_fuse(generator, [base], data, eopm, faults=stuck, out=tmp_path / "fuse", device=cpu)
    fuse = NeuralFuse.from_pretrained(tmp_path / "fuse")
    record = make_evaluation(fuse, base, data, stuck, chips=5)
    export(fuse, tmp_path / "fuse.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "fuse.onnx")
    x = plain_inputs(data.test, base.deployed.input_range)
    made = torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])
    got = [accuracy(base.deployed.perturbed(chip), made, data.test.labels) for chip in stuck.chips(5)]
    assert got == [chip["pa_nf"] for chip in record["per_chip"]]
    assert sum(abs(one - chip["pa"]) > 1 for one, chip in zip(got, record["per_chip"], strict=True)) > 2


def test_apply_and_export_from_the_command_line(trained, tmp_path, capsys):
    folder, _, data = trained
    fuse = str(folder / "fuse")
    np.save(tmp_path / "in.npy", data.test.images.numpy())
    assert run(["apply", fuse, str(tmp_path / "in.npy"), str(tmp_path / "out.npy"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["images"] == len(data.test.images) == len(np.load(tmp_path / "out.npy"))
    assert f"{len(data.test.images)} of {len(data.test.images)} images" in shown.err
    for image, place in zip(data.test.images, range(3), strict=False):
        picture(image.permute(1, 2, 0).numpy(), tmp_path / "in" / f"{place}.png")
    assert run(["apply", fuse, str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "Wrote 3 images" in capsys.readouterr().out
    first = np.asarray(Image.open(tmp_path / "out" / "0.png"))
    assert np.array_equal(first, np.load(tmp_path / "out.npy")[0, 0])
    fails(capsys, ["apply", fuse, str(tmp_path / "in.npy"), "x.npy", "--resize"], "must be left out for an array")
    fails(capsys, ["apply", str(tmp_path), str(tmp_path / "in.npy"), "x.npy"], "cannot read")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(["export", fuse, "--out", str(tmp_path / "fuse.onnx")]) == 0
    assert "differs from PyTorch by at most" in capsys.readouterr().out
    fails(capsys, ["export", fuse, "--out", "/proc/none/fuse.onnx"], "cannot write")
