"""The public API as a user of torch would write it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neuralfuse as nf
from helpers.models import SmallNet
from helpers.toy import toy_data
from neuralfuse.data import AUGMENT
from neuralfuse.errors import ConfigError, DataError, ShapeError


@pytest.fixture
def data() -> nf.DataSet:
    """Toy images in colour."""
    grey = toy_data()
    parts = {name: getattr(grey, name) for name in ("train", "validation", "test")}
    coloured = {name: nf.Split(one.images.expand(-1, 3, -1, -1).clone(), one.labels) for name, one in parts.items()}
    return replace(grey, **coloured)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Conv2d(3, 1, 1), SmallNet()).eval()


def test_the_whole_story_in_six_lines(model, data, capsys):
    base   = nf.deploy(model, input_range="imagenet")  # fmt: skip
    faults = nf.Stuck(ber=0.01)
    fuse   = nf.NeuralFuse.for_(base, data, "unets", seed=0)  # fmt: skip  # size, channels, range are known already
    nf.train_fuse(fuse, base, data, faults=faults, epochs=1, batch=32, n_chips=2, seed=0)
    print(nf.evaluate(base, data.test, faults.chips(30), fuse=fuse))
    x = base.input_range.from_images(data.test.images)
    logits = base(fuse(x))
    lines = capsys.readouterr().out.splitlines()
    assert logits.shape == (len(x), 5)
    assert (fuse.channels, fuse.image_size, fuse.input_range) == (3, (8, 8), base.input_range)
    assert lines[0].startswith("1% faulty (stuck); ") and lines[0].endswith("of the stored bits changed; 30 chips")
    assert [line.split()[0] for line in lines[1:]] == ["CA", "PA", "CA(NF)", "PA(NF)", "RP"]
    assert fuse.trained["ber"] == 0.01 and fuse.trained["faults"] == "stuck"


def test_whatever_draws_asks_for_a_seed(model, data):
    base = nf.deploy(model)
    with pytest.raises(ConfigError, match="seed must be given, because the weights of unets are drawn at random"):
        nf.NeuralFuse.for_(base, data, "unets")
    with torch.random.fork_rng():
        own = nf.NeuralFuse.for_(base, data, nn.Conv2d(3, 3, 3, padding=1))  # has its weights already
    with pytest.raises(ConfigError, match="seed must be given, because training draws at random"):
        nf.train_fuse(own, base, data, faults=nf.Flip(ber=0.01), epochs=1)


@pytest.mark.parametrize("as_what", ["pixels", "floats", "loader of floats", "loader of pixels"])
def test_images_are_taken_in_any_form(as_what, model, data):
    """In the model's own space where they are floats; a loader is read once, in its order."""
    base, faults = nf.deploy(model, input_range="imagenet"), nf.Flip(ber=0.02)
    inputs = base.input_range.from_bytes

    def form(split: nf.Split):
        images = split.images if "pixels" in as_what else inputs(split.images)
        return DataLoader(TensorDataset(images, split.labels), 7) if "loader" in as_what else (images, split.labels)

    wanted = nf.evaluate(base, data.test, faults.chips(3))
    assert nf.evaluate(base, form(data.test), faults.chips(3)) == wanted
    given = nf.DataSet("toy", data.classes, *(form(one) for one in (data.train, data.validation, data.test)))
    options = {"faults": faults, "epochs": 1, "batch": 16, "n_chips": 1, "augment": "none", "seed": 0}
    histories = []
    for images in (data, given):
        fuse = nf.NeuralFuse.for_(base, images, "convs", seed=0)
        histories.append(nf.train_fuse(fuse, base, images, **options).history)
    assert histories[0] == histories[1]


def test_floats_are_augmented_as_the_pixels_that_they_come_from(data):
    images, augment = data.train.images[:8], AUGMENT["crop-flip"]
    imagenet = nf.InputRange.named("imagenet")
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    of_pixels = augment.inputs(images, imagenet, draws[0])
    of_floats = augment.inputs(imagenet.from_bytes(images), imagenet, draws[1])
    assert torch.allclose(of_pixels, of_floats, atol=1e-5)


class Odd(torch.utils.data.Dataset):
    """Yields dictionaries."""

    def __len__(self):
        return 3

    def __getitem__(self, place):
        return {"image": torch.zeros(1, 8, 8), "label": place}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (DataLoader(Odd(), 2), r"a DataLoader must yield pairs \(images, labels\) .*: got a dict"),
        (DataLoader(TensorDataset(torch.zeros(4, 3, 8, 8)), 2), r"must yield pairs .*: got \(a tensor torch.float32"),
        (DataLoader(TensorDataset(torch.zeros(4, 8, 8), torch.zeros(4)), 2), "must yield pairs .* whole numbers"),
        (DataLoader([], 2), "a DataLoader must yield at least one batch: got none"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(3, dtype=torch.long)), r"must be a Split, a DataLoader, or pairs"),
        ((torch.zeros(4, 3, 8, 8), torch.zeros(4)), "whole numbers"),
        ("photos", "images must be a Split, a DataLoader, or pairs .*: got a str"),
    ],
)
def test_what_is_no_images_is_said(source, says, model):
    with pytest.raises(DataError, match=says):
        nf.evaluate(nf.deploy(model), source, nf.Flip(ber=0.01).chips(1))


def test_floats_outside_of_the_input_space_are_refused(model, data):
    base, faults = nf.deploy(model), nf.Stuck(ber=0.01)
    images, labels = data.test.images, data.test.labels
    with pytest.raises(ConfigError, match="as such they hold pixels from 0.5 to 125, not in"):
        nf.evaluate(base, (images.float(), labels), faults.chips(1))
    with pytest.warns(UserWarning, match="all float images lie in .* are they pixels"):
        nf.evaluate(base, (images.float() / 255, labels), faults.chips(1))
    with pytest.raises(DataError, match="float images must be finite"):
        nf.evaluate(base, (images / 255 + float("nan"), labels), faults.chips(1))
    parts = {part: getattr(data, part) for part in ("train", "validation", "test")}
    wrong = replace(data, **{part: nf.Split(one.images.float(), one.labels) for part, one in parts.items()})
    fuse = nf.NeuralFuse.for_(base, data, "unets", seed=0)
    with pytest.raises(ConfigError, match="as such they hold pixels"):
        nf.train_fuse(fuse, base, wrong, faults=faults, max_steps=1, seed=0)


def test_labels_must_suit_classes_and_outputs(model, data):
    base, chips = nf.deploy(model), nf.Stuck(ber=0.01).chips(1)
    with pytest.raises(ConfigError, match="labels must be in 0..4, for 5 outputs of the model: got 77"):
        nf.evaluate(base, (data.test.images, torch.full_like(data.test.labels, 77)), chips)
    with pytest.raises(DataError, match="labels must be int64"):
        nf.Split(data.test.images, data.test.labels.float())
    for label in (-100, len(data.classes)):
        bad = nf.Split(data.train.images, torch.full_like(data.train.labels, label))
        with pytest.raises(DataError, match=rf"labels must be in 0..{len(data.classes) - 1}.* in train"):
            replace(data, train=bad)
    with pytest.raises(DataError, match="all parts of a data set must have images of one type and size: got 2"):
        replace(data, test=nf.Split(data.test.images[..., 1:], data.test.labels))


def test_images_must_suit_the_model(model, data):
    grey, chips = (data.test.images[:, :1], data.test.labels), nf.Stuck(ber=0.01).chips(1)
    with pytest.raises(ConfigError, match="must have 1 or 1 means for 1-channel images: got 3"):
        nf.evaluate(nf.deploy(model, input_range="imagenet"), grey, chips)
    with pytest.raises(ConfigError, match="the base model must accept images of 1 channels"):
        nf.evaluate(nf.deploy(model), grey, chips)


def test_what_is_no_model_in_its_memory_or_no_chip_is_said(model, data):
    base, faults = nf.deploy(model), nf.Stuck(ber=0.01)
    with pytest.raises(ConfigError, match="a model must be deployed once"):
        nf.deploy(base)
    with pytest.raises(ConfigError, match="the base model must be deployed: got a Sequential"):
        nf.evaluate(model, data.test, faults.chips(1))
    for chips in (faults, [faults]):
        with pytest.raises(ConfigError, match="chips must be a list of chips"):
            nf.evaluate(base, data.test, chips)
    fuse = nf.NeuralFuse.for_(base, data, "unets", seed=0)
    with pytest.raises(ConfigError, match="a base model must be deployed: got a"):
        nf.train_fuse(fuse, model, data, faults=faults, seed=0)
    with pytest.raises(ConfigError, match="data must be a DataSet, whose parts may be DataLoaders: got a tuple"):
        nf.train_fuse(fuse, base, (data.train.images, data.train.labels), faults=faults, seed=0)
    with pytest.raises(ConfigError, match="config must be an EopmConfig"):
        nf.train_fuse(fuse, base, data, {"epochs": 1}, faults=faults)
    with pytest.raises(ConfigError, match=r"image_size must be \(height, width\): got 8"):
        nf.NeuralFuse("unets", image_size=8, seed=0)
    assert nf.NeuralFuse("unets", image_size=[8, 8], seed=0).image_size == (8, 8)


def test_chips_of_two_rates_are_reported_with_none(model, data):
    chips = [*nf.Stuck(ber=0.01).chips(1), *nf.Stuck(ber=0.2).chips(1)]
    result = nf.evaluate(nf.deploy(model), data.test, chips)
    assert result.faults is None and "stuck" not in str(result)


def test_a_new_image_size_is_taken_in_inference_mode_too(model, data):
    exact = nf.NeuralFuse("unets", channels=1, image_size=(8, 8), seed=0).eval()
    pad = nf.NeuralFuse("unets", channels=1, image_size=(8, 8), fit="pad", seed=0).eval()
    with torch.inference_mode():
        assert exact(torch.zeros(1, 1, 16, 16)).shape == (1, 1, 16, 16)
        assert pad(torch.zeros(1, 1, 13, 13)).shape == (1, 1, 13, 13)
        with pytest.raises(ShapeError, match="Resize to 16x16 or 24x24"):
            exact(torch.zeros(1, 1, 17, 17))
    with pytest.raises(ShapeError, match="images must be floats in the model's own input space: got torch.uint8"):
        exact(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_python_mistakes_are_said_in_one_line(model, data):
    base, faults = nf.deploy(model), nf.Stuck(ber=0.01)
    with pytest.raises(ConfigError, match="a chip must be given"):
        base.perturbed(faults)
    with pytest.raises(ConfigError, match="a model must be an nn.Module: got 'resnet8'"):
        nf.deploy("resnet8")
    with pytest.raises(ConfigError, match="for_ must get a deployed model.* got a Sequential and a DataSet"):
        nf.NeuralFuse.for_(model, data, "unets", seed=0)
    with pytest.raises(DataError, match="a list of 64"):
        nf.evaluate(base, (data.test.images, [0] * 64), faults.chips(1))
    assert len(repr(data)) < 400
