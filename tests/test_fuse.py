"""F(x) = clip(x + G(x)): the formula, input ranges, sizes, saving."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralfuse.errors import ConfigError, FileFormatError, OutputError, ShapeError, UnknownNameError
from neuralfuse.files import write_json
from neuralfuse.fuse import NeuralFuse
from neuralfuse.nets import GENERATORS, generator
from neuralfuse.ranges import InputRange

RANGES = ["symmetric", "unit", "imagenet"]


def images(channels=3, size=(16, 16), count=2):
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", GENERATORS)
def test_the_formula(name):
    fuse = NeuralFuse(name, image_size=(16, 16), seed=4).eval()
    twin = generator(name, image_size=(16, 16), seed=4).eval()
    x = images() * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(fuse(x), torch.clamp(x + twin(x), -1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RANGES)
def test_other_input_ranges_see_the_same_transformation(name):
    """Pixels in, pixels out: whatever the model's inputs are made of, the images seen are the same."""
    plain = NeuralFuse("convs", image_size=(16, 16), seed=4).eval()
    other = NeuralFuse("convs", image_size=(16, 16), input_range=name, seed=4).eval()
    ours, theirs = InputRange(), InputRange.named(name)
    pixels = images()
    scale, shift = theirs.affine_to_symmetric()
    with torch.inference_mode():
        wanted = plain(ours.from_pixels(pixels))
        got = other(theirs.from_pixels(pixels))
    assert torch.allclose(scale * got + shift, wanted, atol=1e-5)
    assert (scale * got + shift).abs().max() <= 1 + 1e-5


def test_input_range_of_bytes():
    x = InputRange.named("imagenet").from_bytes(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    assert x.shape == (2, 3, 1, 1)
    assert x[1, 0].item() == pytest.approx((1 - 0.485) / 0.229)


def test_input_ranges_are_checked():
    with pytest.raises(UnknownNameError, match="Did you mean 'imagenet'"):
        InputRange.named("imagenets")
    with pytest.raises(ConfigError, match="one value per channel"):
        InputRange(mean=(0.5,), std=(0.5, 0.5))
    with pytest.raises(ConfigError, match="std must be positive"):
        InputRange(std=(0.0,))
    with pytest.raises(ConfigError, match="must have 1 or 1 means for 1-channel images"):
        NeuralFuse("convs", channels=1, input_range="imagenet", seed=0)


@pytest.mark.parametrize("size", [(8, 12), (30, 32), (7, 7)])
def test_sizes_that_the_generator_cannot_take_are_refused_with_those_it_can(size):
    with pytest.raises(ShapeError, match=r"must suit generator unets: for .* Resize to .* or use fit=\"pad\""):
        NeuralFuse("unets", image_size=size, seed=0)
    fuse = NeuralFuse("unets", seed=0)
    with pytest.raises(ShapeError, match="must suit generator unets"):
        fuse(images(size=size))


@given(height=st.integers(1, 20), width=st.integers(1, 20))
@settings(max_examples=8, deadline=None)
def test_padding_takes_any_size(height, width):
    fuse = NeuralFuse("deconvs", image_size=(height, width), fit="pad", seed=0).eval()
    x = images(size=(height, width)) * 2 - 1
    with torch.inference_mode():
        assert fuse(x).shape == x.shape


def test_padding_changes_nothing_where_nothing_is_to_be_padded():
    exact, padded = (NeuralFuse("convl", image_size=(16, 16), fit=fit, seed=0).eval() for fit in ("exact", "pad"))
    with torch.inference_mode():
        assert torch.equal(exact(images()), padded(images()))


def test_wrong_inputs_are_refused():
    with pytest.raises(ShapeError, match=r"images must be \(N, 3, H, W\): got \(2, 1, 16, 16\)"):
        NeuralFuse("convs", seed=0)(images(channels=1))
    with pytest.raises(ShapeError, match="images for uip must be"):
        NeuralFuse("uip", image_size=(8, 8), seed=0)(images())
    with pytest.raises(UnknownNameError, match="unknown fit 'crop'"):
        NeuralFuse("convs", fit="crop", seed=0)


@pytest.mark.parametrize("name", GENERATORS)
def test_saved_module_loads_equal(name, tmp_path):
    fuse = NeuralFuse(name, image_size=(16, 16), input_range="imagenet", seed=1, trained={"ber": 0.01}).eval()
    fuse.save_pretrained(tmp_path)
    again = NeuralFuse.from_pretrained(tmp_path)
    assert not again.training
    assert again.trained == {"ber": 0.01}
    assert again.input_range == fuse.input_range
    with torch.inference_mode():
        assert torch.equal(again(images()), fuse(images()))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_a_generator_s_weights_do_not_load_into_another(tmp_path):
    NeuralFuse("convs", seed=0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, "generator": "convl"})
    with pytest.raises(FileFormatError, match=r"must hold the weights of generator convl: .*another architecture"):
        NeuralFuse.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {**config, "generator": "convx"})
    with pytest.raises(FileFormatError, match="must name a generator that is known here: got 'convx'"):
        NeuralFuse.from_pretrained(tmp_path)


def test_an_unwritable_folder_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*Choose another place with --out"):
        NeuralFuse("convs", seed=0).save_pretrained(tmp_path / "file" / "fuse")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_universal_perturbation_is_the_tanh_of_one_tensor_added_to_every_image():
    fuse = NeuralFuse("uip", channels=3, image_size=(8, 8), input_range=InputRange.named("unit"), seed=0)
    with torch.no_grad():
        fuse.generator.perturbation.copy_(torch.linspace(-2, 2, 192).view_as(fuse.generator.perturbation))
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    added = torch.tanh(torch.linspace(-2, 2, 192)).view(3, 8, 8)
    wanted = (((2 * x - 1) + added).clamp(-1, 1) + 1) / 2
    assert torch.allclose(fuse(x), wanted, atol=1e-6)
    assert float((wanted - x).abs().mean()) > 0.1
