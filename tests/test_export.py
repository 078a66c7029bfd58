"""Files and arrays transformed as the module does it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.cli import fails
from helpers.modules import strong
from helpers.toy import toy_data
from neuralfuse.cli.main import run
from neuralfuse.errors import DataError, NeuralFuseError, OutputError
from neuralfuse.export import apply_array, apply_folder
from neuralfuse.export.apply import BATCH
from neuralfuse.fuse import NeuralFuse


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


def test_apply_from_the_command_line_and_what_neither_it_nor_export_can_do(tmp_path, capsys):
    fuse, data = str(tmp_path / "fuse"), toy_data()
    strong(channels=1).save_pretrained(fuse)
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
    fails(capsys, ["export", fuse, "--out", "/proc/none/fuse.onnx"], "cannot write")
