"""Networks: the paper's parameter counts, torchvision's layout, sizes."""

from __future__ import annotations

import json

import pytest
import torch

from neuralfuse.errors import ConfigError, FileFormatError, ShapeError, UnknownNameError
from neuralfuse.files import write_json, write_tensors
from neuralfuse.nets import (
    BASE_MODELS,
    GENERATORS,
    BaseModel,
    base_model,
    catalogue,
    generator,
    load_base,
    save_base,
)

# Source: NeuralFuse (arXiv 2306.16869), Tables 7 and 14; PreAct ResNet18: counted from its definition.
PAPER = {
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "vgg11": 9_231_114,
    "vgg16": 14_728_266,
    "vgg19": 20_040_522,
    "resnet18-imagenet": 11_181_642,
    "resnet50-imagenet": 23_528_522,
    "vgg11-imagenet": 128_812_810,
    "vgg16-imagenet": 134_309_962,
    "vgg19-imagenet": 139_622_218,
    "convl": 723_273,
    "convs": 113_187,
    "deconvl": 647_785,
    "deconvs": 156_777,
    "unetl": 482_771,
    "unets": 121_195,
}


def test_parameter_counts_are_the_paper_s():
    record = catalogue()
    counts = {one["name"]: one["parameters"] for one in record["base_models"] + record["generators"]}
    assert {name: counts[name] for name in PAPER} == PAPER


@pytest.mark.parametrize("name", [name for name, spec in BASE_MODELS.items() if spec.image_size == 32])
def test_base_models_give_logits(name):
    model = base_model(name, classes=7, channels=2, seed=0).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 2, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet18-imagenet", "resnet18"),
        ("resnet50-imagenet", "resnet50"),
        pytest.param("vgg11-imagenet", "vgg11_bn", marks=pytest.mark.slow),  # 129 million weights
    ],
)
def test_imagenet_forms_compute_what_torchvision_s_do(ours, theirs):
    models = pytest.importorskip("torchvision.models")
    model = base_model(ours, classes=10, image_size=(224, 224), seed=3).eval()
    with torch.device("meta"):
        twin = getattr(models, theirs)(num_classes=10, weights=None).eval()
    twin.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(model(x), twin(x), atol=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (8, 16))])
def test_generators_keep_the_shape_of_images(name, channels, size):
    model = generator(name, channels=channels, image_size=size, seed=0).eval()
    x = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        y = model(x)
    assert y.shape == x.shape
    if not name.startswith("unet"):
        assert y.abs().max() < 1


def test_initial_weights_depend_on_the_seed_alone():
    one, same, other = (generator("convs", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_unknown_and_impossible_networks_are_refused():
    with pytest.raises(UnknownNameError, match="unknown base model 'resnet19'. Did you mean 'resnet18'"):
        base_model("resnet19", classes=10, seed=0)
    with pytest.raises(UnknownNameError, match="unknown generator 'conv'. Did you mean 'conv[ls]'"):
        generator("conv", seed=0)
    with pytest.raises(ShapeError, match="images for vgg11 must be at least 32x32: got 8x8"):
        base_model("vgg11", classes=10, image_size=(8, 8), seed=0)
    with pytest.raises(ConfigError, match="classes must be at least 2"):
        base_model("resnet8", classes=1, seed=0)


@pytest.fixture
def saved(tmp_path):
    model = BaseModel(
        name="resnet8",
        module=base_model("resnet8", classes=4, channels=1, image_size=(8, 8), seed=0).eval(),
        classes=4,
        channels=1,
        image_size=(8, 8),
        trained={"note": "not at all"},
    )
    save_base(model, tmp_path / "base")
    return model, tmp_path / "base"


def test_saved_base_model_loads_equal(saved):
    model, folder = saved
    again = load_base(folder)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again.module(x), model.module(x))
    assert (again.scheme, again.input_range, again.trained) == (model.scheme, model.input_range, model.trained)


def test_truncated_weights_are_refused(saved):
    _, folder = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileFormatError, match="must be a whole safetensors file"):
        load_base(folder)


def test_foreign_weights_are_refused(saved):
    _, folder = saved
    write_tensors(folder / "model.safetensors", generator("convs", seed=0).state_dict())
    with pytest.raises(FileFormatError, match=r"must hold the weights of resnet8 with 4 classes: it lacks 'conv1\.w"):
        load_base(folder)


def test_another_number_of_classes_is_refused(saved):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "classes": 5})
    with pytest.raises(FileFormatError, match=r"'fc.weight' has shape \(4, 64\), resnet8 with 5 classes needs"):
        load_base(folder)


@pytest.mark.parametrize("change", [{"name": "resnet9"}, {"scheme": {"bits": 99}}, {"image_size": []}])
def test_broken_configs_are_refused(saved, change):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, **change})
    with pytest.raises(FileFormatError, match=r"config\.json must describe a base model"):
        load_base(folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"cannot read .*config\.json: No such file"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text("{]")
    with pytest.raises(FileFormatError, match="must be JSON"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text('{"schema": "other/1"}')
    with pytest.raises(FileFormatError, match="must have schema 'neuralfuse/base/1': got 'other/1'"):
        load_base(tmp_path)


@pytest.mark.parametrize("name", sorted(set(GENERATORS) - {"uip"}))
def test_a_generator_s_narrowest_layer_has_an_eighth_of_the_image(name):
    module = generator(name, channels=1, image_size=(16, 24), seed=0).eval()
    layer, channels = module.narrowest
    seen = []
    layer.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    images = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        module(images)
        assert seen[0].shape == (2, channels, 2, 3)
