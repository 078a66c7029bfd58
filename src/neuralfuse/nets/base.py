"""The registry of base models, and base models with the information needed to deploy them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from neuralfuse.errors import ConfigError, ShapeError, require, unknown_name
from neuralfuse.nets.resnet import BasicBlock, Bottleneck, PreActResNet, ResNet
from neuralfuse.nets.vgg import STAGES, VGG
from neuralfuse.quant import Scheme
from neuralfuse.ranges import InputRange


class _Builder(Protocol):
    def __call__(self, *, classes: int, channels: int) -> nn.Module: ...


_Family = tuple[int, Callable[[int], _Builder]]  # the usual width, and a function from any width to its builder


@dataclass(frozen=True)
class BaseSpec:
    """One entry of the registry.

    Attributes:
        image_size: Intended image size (H = W).
        smallest: Smallest H and W that the network accepts.
        note: Where the network comes from.
        width: Channels of the first stage.
        member: Returns the builder of the network for a given width.
    """

    image_size: int
    smallest: int
    note: str
    width: int
    member: Callable[[int], _Builder]

    @property
    def build(self) -> _Builder:
        """Builder of the network for a number of classes and input channels."""
        return self.member(self.width)


def _resnet(block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], width: int = 64, **form: Any) -> _Family:
    def member(width: int) -> _Builder:
        return lambda *, classes, channels: ResNet(
            block, depths, classes=classes, channels=channels, width=width, **form
        )

    return width, member


def _preact(depths: tuple[int, ...], width: int = 64) -> _Family:
    def member(width: int) -> _Builder:
        return lambda *, classes, channels: PreActResNet(depths, classes=classes, channels=channels, width=width)

    return width, member


def _vgg(stages: tuple[int, ...], width: int = 64, **form: Any) -> _Family:
    def member(width: int) -> _Builder:
        return lambda *, classes, channels: VGG(stages, classes=classes, channels=channels, width=width, **form)

    return width, member


def _spec(family: _Family, image_size: int, smallest: int, note: str) -> BaseSpec:
    width, member = family
    return BaseSpec(image_size, smallest, note, width, member)


_PAPER = "the paper's network, CIFAR form"
_TORCHVISION = "the paper's network, torchvision's form"
_SMALL = "for CPUs: a quarter of the width"
_EIGHTH = "for CPUs: an eighth of the width"
_TINY = "for images of 8x8: three short stages, an eighth of the width"

BASE_MODELS: dict[str, BaseSpec] = {
    "resnet18": _spec(_resnet(BasicBlock, (2, 2, 2, 2)), 32, 1, _PAPER),
    "resnet50": _spec(_resnet(Bottleneck, (3, 4, 6, 3)), 32, 1, _PAPER),
    "vgg11": _spec(_vgg(STAGES["vgg11"]), 32, 32, _PAPER),
    "vgg16": _spec(_vgg(STAGES["vgg16"]), 32, 32, _PAPER),
    "vgg19": _spec(_vgg(STAGES["vgg19"]), 32, 32, _PAPER),
    "resnet18-imagenet": _spec(_resnet(BasicBlock, (2, 2, 2, 2), stem="imagenet"), 224, 1, _TORCHVISION),
    "resnet50-imagenet": _spec(_resnet(Bottleneck, (3, 4, 6, 3), stem="imagenet"), 224, 1, _TORCHVISION),
    "vgg11-imagenet": _spec(_vgg(STAGES["vgg11"], form="imagenet"), 224, 32, _TORCHVISION + ", with BatchNorm"),
    "vgg16-imagenet": _spec(_vgg(STAGES["vgg16"], form="imagenet"), 224, 32, _TORCHVISION + ", with BatchNorm"),
    "vgg19-imagenet": _spec(_vgg(STAGES["vgg19"], form="imagenet"), 224, 32, _TORCHVISION + ", with BatchNorm"),
    "preact-resnet18": _spec(_preact((2, 2, 2, 2)), 32, 1, "the paper's network for adversarial perturbation"),
    "resnet8": _spec(_resnet(BasicBlock, (1, 1, 1), width=16), 32, 1, "for CPUs: three stages of one block"),
    "resnet18-quarter": _spec(_resnet(BasicBlock, (2, 2, 2, 2), width=16), 32, 1, _SMALL),
    "resnet50-eighth": _spec(_resnet(Bottleneck, (3, 4, 6, 3), width=8), 32, 1, _EIGHTH),
    "vgg11-quarter": _spec(_vgg(STAGES["vgg11"], width=16), 32, 32, _SMALL),
    "vgg16-quarter": _spec(_vgg(STAGES["vgg16"], width=16), 32, 32, _SMALL),
    "vgg19-quarter": _spec(_vgg(STAGES["vgg19"], width=16), 32, 32, _SMALL),
    "preact-resnet18-quarter": _spec(_preact((2, 2, 2, 2), width=16), 32, 1, _SMALL),
    "resnet18-tiny": _spec(_resnet(BasicBlock, (1, 1, 1), width=8), 8, 1, _TINY),
    "resnet50-tiny": _spec(_resnet(Bottleneck, (1, 1, 1), width=8), 8, 1, _TINY),
    "vgg11-tiny": _spec(_vgg((1, 1, 1), width=8), 8, 8, _TINY),
    "vgg16-tiny": _spec(_vgg((1, 2, 2), width=8), 8, 8, _TINY),
    "vgg19-tiny": _spec(_vgg((1, 2, 3), width=8), 8, 8, _TINY),
    "preact-resnet18-tiny": _spec(_preact((1, 1, 1), width=8), 8, 1, _TINY),
}


def base_spec(name: str) -> BaseSpec:
    """Return an entry of `BASE_MODELS`. ``NAME@WIDTH`` is the network NAME with WIDTH channels in its first stage.

    Raises:
        UnknownNameError: there is no such model.
        ConfigError: the width is not an integer in 1..4096.
    """
    known, at, width = name.partition("@")
    if known not in BASE_MODELS:
        raise unknown_name("base model", name, BASE_MODELS)
    spec = BASE_MODELS[known]
    if not at:
        return spec
    legal = width.isascii() and width.isdigit() and 1 <= int(width) <= 4096
    require(legal, f"the width of a base model, NAME@WIDTH, must be in 1..4096: got {name!r}.")
    return replace(spec, width=int(width))


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model with the information needed to deploy it.

    Attributes:
        name: Registry name, or ``package.module:factory`` for a user's own model.
        module: The network with its float weights.
        classes: Number of classes.
        channels: Input channels.
        image_size: (H, W) of the images that the model was made for.
        scheme: Quantization scheme of the stored weights.
        input_range: Value range of the inputs.
        trained: How the model was trained, for records. Empty if unknown.
    """

    name: str
    module: nn.Module
    classes: int
    channels: int
    image_size: tuple[int, int]
    scheme: Scheme = field(default_factory=Scheme)
    input_range: InputRange = field(default_factory=InputRange)
    trained: dict[str, Any] = field(default_factory=dict)


def base_model(
    name: str, *, classes: int, channels: int = 3, image_size: tuple[int, int] = (32, 32), seed: int
) -> nn.Module:
    """Return an untrained base model.

    Args:
        name: A key of `BASE_MODELS`. Append ``@WIDTH`` for another number of channels in the first stage.
        classes: Number of classes.
        channels: Input channels.
        image_size: (H, W) of the images.
        seed: Seed of the initial weights.
    Raises:
        UnknownNameError: there is no such model.
        ShapeError: the images are too small for the model.
    """
    spec = base_spec(name)
    require(classes >= 2, f"classes must be at least 2: got classes={classes}.")
    require(channels >= 1, f"channels must be at least 1: got channels={channels}.")
    if min(image_size) < spec.smallest:
        fits = ", ".join(other for other, one in BASE_MODELS.items() if one.smallest <= min(image_size))
        raise ShapeError(
            f"images for {name} must be at least {spec.smallest}x{spec.smallest}: got "
            f"{image_size[0]}x{image_size[1]}. Enlarge them with --image-size, or choose one of {fits or 'none'}."
        )
    return seeded(lambda: spec.build(classes=classes, channels=channels), seed)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module whose initial weights depend on ``seed`` alone. The global generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_base(model: BaseModel, *, classes: int, channels: int) -> None:
    """Raise `ConfigError` unless a base model has a data set's number of classes and channels."""
    for what, own, wanted in (("classes", model.classes, classes), ("channels", model.channels, channels)):
        if own != wanted:
            raise ConfigError(f"base model and data must have the same number of {what}: got {own} and {wanted}.")
