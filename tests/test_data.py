"""Data sets: what is read, what is held out, what is refused; augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.places import SHARED
from neuralfuse.data import AUGMENT, Augment, Split, augmentation, holdout, load_data
from neuralfuse.errors import ConfigError, DataError, MissingExtraError, ShapeError, UnknownNameError


def write_image(path, value=100, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 12), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                write_image(tmp_path / part / name / f"{index}.png", 100 * label + index)
    return tmp_path


def test_digits_come_with_the_package():
    data = load_data("digits")
    assert data.image_size == (8, 8)
    assert data.channels == 1
    parts = (data.train, data.validation, data.test)
    assert sum(len(part) for part in parts) == 1797
    assert all(len(part.labels.unique()) == 10 for part in parts)
    assert data.train.images.max() == 255
    rows = {bytes(image.numpy().tobytes()) for part in parts for image in part.images}
    assert len(rows) > 1790  # nearly all images differ, so an overlap of the parts would show
    again = load_data("digits")
    assert torch.equal(again.test.labels, data.test.labels)


def test_images_can_be_resized():
    assert load_data("digits", image_size=(32, 16)).image_size == (32, 16)


def test_a_folder_of_images(folder):
    data = load_data("folder", folder)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    assert data.test.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_broken_image_is_named(folder):
    bad = folder / "train" / "dog" / "7.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot read image .*train/dog/7\.png"):
        load_data("folder", folder)


def test_a_class_without_images_is_named(folder):
    (folder / "train" / "emu").mkdir()
    with pytest.raises(DataError, match=r"train/emu must hold images .*got none"):
        load_data("folder", folder)


def test_differing_classes_are_named(folder):
    write_image(folder / "test" / "emu" / "0.png")
    with pytest.raises(DataError, match=r"same classes as the training folder: emu differ"):
        load_data("folder", folder)


def test_images_of_different_sizes_need_a_size(folder):
    write_image(folder / "train" / "dog" / "3.png", size=(8, 20))
    with pytest.raises(DataError, match=r"all images must have the same size: .*Pass --image-size"):
        load_data("folder", folder)
    assert load_data("folder", folder, image_size=(8, 8)).image_size == (8, 8)


def test_missing_data_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"no such folder. Lay images out as train/<class>/\*"):
        load_data("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="needs --data-dir: got none"):
        load_data("folder")
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        load_data("cifar")
    with pytest.raises(ConfigError, match="image_size must be positive"):
        load_data("digits", image_size=(0, 8))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb"])
def test_sets_that_are_not_there_say_how_to_get_them(name, tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match=f"--data {name} must be in .*Pass --download"):
        load_data(name, tmp_path)


def test_a_missing_torchvision_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'neuralfuse\[vision\]'"):
        load_data("gtsrb", tmp_path)


@pytest.fixture
def signs(tmp_path):
    """Three classes of four tracks of three frames, in torchvision's layout."""
    base = tmp_path / "gtsrb"
    for label in range(3):
        for track in range(4):
            for frame in range(3):
                path = base / "GTSRB" / "Training" / f"{label:05d}" / f"{track:05d}_{frame:05d}.ppm"
                write_image(path, 50 * label + 10 * track + frame, (40, 36))
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for index in range(3):
        write_image(base / "GTSRB" / "Final_Test" / "Images" / f"{index:05d}.ppm", index, (40, 36))
        lines.append(f"{index:05d}.ppm;36;40;0;0;1;1;{2 - index}")
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_traffic_signs_are_split_by_track(signs):
    pytest.importorskip("torchvision")
    data = load_data("gtsrb", signs)
    assert data.image_size == (32, 32)
    assert data.test.labels.tolist() == [2, 1, 0]
    held, kept = set(data.validation.groups.tolist()), set(data.train.groups.tolist())
    assert not held & kept
    assert len(data.validation) == 9  # one track of each class
    assert len(data.train) == 27


@pytest.mark.slow
def test_the_real_traffic_signs(tmp_path):
    import tarfile

    archive = SHARED / "data" / "gtsrb32.tar.xz"
    if not archive.exists():
        pytest.skip("needs GTSRB beside the checkout, and there is none")
    pytest.importorskip("torchvision")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    data = load_data("gtsrb", tmp_path)
    assert len(data.train) + len(data.validation) == 39_209
    assert len(data.test) == 12_630
    assert len(data.classes) == 43
    assert not set(data.validation.groups.tolist()) & set(data.train.groups.tolist())


@pytest.mark.parametrize("stray", ["notes.png", "x/00000_00000.ppm"])
def test_traffic_signs_that_are_laid_out_otherwise_are_refused(stray, signs):
    pytest.importorskip("torchvision")
    write_image(signs / "gtsrb" / "GTSRB" / "Training" / ("00001" if "/" not in stray else "") / stray)
    with pytest.raises(DataError, match="must have its published layout"):
        load_data("gtsrb", signs)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_comes_through_torchvision(name, classes, monkeypatch, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")

    class Fake:
        def __init__(self, root, train, download):
            count = classes * (3 if train else 1)
            self.data = (np.arange(count * 3072) % 251).astype(np.uint8).reshape(count, 32, 32, 3)
            self.targets = [index % classes for index in range(count)]
            self.classes = [f"class {index}" for index in range(classes)]

    monkeypatch.setattr(datasets, name.upper(), Fake)
    data = load_data(name, tmp_path, image_size=(16, 16))
    assert data.image_size == (16, 16)
    assert (len(data.train), len(data.validation), len(data.test)) == (2 * classes, classes, classes)
    plain = load_data(name, tmp_path)
    assert plain.test.images[0, :, 0, 0].tolist() == [0, 1, 2]


def test_cifar_from_image_files_says_so(folder):
    data = load_data("cifar10", folder)
    assert data.name == "cifar10"
    assert data.image_size == (32, 32)
    assert data.to_config()["files"] == list(data.files) == sorted({path.suffix for path in folder.rglob("*.*")})
    assert "files" not in load_data("folder", folder, image_size=(8, 8)).to_config()


def test_imagenet_10_has_a_size_of_its_own(folder):
    data = load_data("imagenet10", folder)
    assert data.image_size == (224, 224)
    assert data.files == ()


def test_groups_are_never_torn_apart():
    split = Split(
        torch.zeros(8, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1, 0, 1, 0, 1]), torch.arange(8) // 2
    )
    kept, held = holdout(split, 0.3, "x")
    assert not set(kept.groups.tolist()) & set(held.groups.tolist())


def test_holdout_needs_two_of_each_class():
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1]))
    with pytest.raises(DataError, match="class 1 has 1"):
        holdout(split, 0.1, "x")


def test_splits_are_checked():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ShapeError, match=r"must be uint8 pixels or float32 model inputs .*: got torch.float64"):
        Split(images.double(), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match="one label per image"):
        Split(images, torch.zeros(2, dtype=torch.long))
    with pytest.raises(DataError, match="at least one image"):
        Split(images[:0], torch.zeros(0, dtype=torch.long))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_no_augmentation_is_the_identity():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert torch.equal(Augment()(images, draw()), images.float() / 255)


def test_crops_are_windows_of_the_padded_image():
    images = torch.randint(1, 255, (20, 2, 6, 5), generator=draw(), dtype=torch.uint8)
    out = Augment(crop=2)(images, draw(1))
    padded = torch.nn.functional.pad(images.float() / 255, [2] * 4)
    for image, whole in zip(out, padded, strict=True):
        windows = [whole[:, top : top + 6, left : left + 5] for top in range(5) for left in range(5)]
        assert any(torch.equal(image, window) for window in windows)


def test_about_half_of_the_images_are_mirrored():
    images = torch.randint(0, 255, (400, 1, 4, 4), generator=draw(), dtype=torch.uint8)
    out, plain = Augment(flip=True)(images, draw(1)), images.float() / 255
    same = sum(torch.equal(a, b) for a, b in zip(out, plain, strict=True))
    mirrored = sum(torch.equal(a, b.flip(2)) for a, b in zip(out, plain, strict=True))
    assert same + mirrored == 400
    assert 150 < same < 250


def test_affine_changes_keep_pixels_in_range():
    images = torch.randint(0, 255, (16, 3, 8, 8), generator=draw(), dtype=torch.uint8)
    for augment in AUGMENT.values():
        out = augment(images, draw(2))
        assert out.shape == images.shape
        assert out.min() >= 0
        assert out.max() <= 1
    assert torch.equal(AUGMENT["signs"](images, draw(3)), AUGMENT["signs"](images, draw(3)))


def test_shifts_go_as_far_as_they_may():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., 4, 4] = 255
    out = Augment(translate=0.25)(image.expand(200, -1, -1, -1), draw())
    rows = (out.sum((1, 3)) * torch.arange(8)).sum(1) / out.sum((1, 2, 3)).clamp(min=1e-6)
    assert rows.min() < 2.5
    assert rows.max() > 5.5
    assert rows.max() <= 6.01


def test_windows_lie_inside_the_image():
    images = torch.randint(50, 255, (200, 1, 12, 12), generator=draw(), dtype=torch.uint8)
    out = Augment(area=0.2)(images, draw(1))
    assert out.shape == images.shape
    assert out[:, :, 1:-1, 1:-1].min() > 45 / 255  # nothing from outside but half a pixel at the rim
    means = [AUGMENT["resized-crop"](images[:1].expand(40, -1, -1, -1), draw(seed)).mean((1, 2, 3)) for seed in (1, 2)]
    assert not torch.equal(*means)


def test_augmentation_is_chosen_by_name_or_data_set():
    assert augmentation("auto", "gtsrb") == AUGMENT["signs"]
    assert augmentation("paper", "gtsrb") == AUGMENT["paper-signs"]
    assert augmentation("auto", "of one's own") == augmentation("none", "gtsrb") == Augment()
    with pytest.raises(UnknownNameError, match="Did you mean 'crop-flip'"):
        augmentation("crop-flap", "gtsrb")


@pytest.mark.parametrize("bad", [{"area": 0.0}, {"crop": -1}, {"translate": 1.0}, {"scale": (0.0, 1.0)}])
def test_impossible_augmentation_is_refused(bad):
    with pytest.raises(ConfigError, match=f"{next(iter(bad))} must be"):
        Augment(**bad)
