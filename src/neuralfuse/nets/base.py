"""The registry of base models, and what a trained one carries with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class BaseSpec:
    """One entry of the registry.

    Attributes:
        build: Makes the network for a number of classes and input channels.
        image_size: The size (H = W) it is meant for.
        smallest: The smallest H and W it can take.
        note: Where it comes from.
    """

    build: _Builder
    image_size: int
    smallest: int
    note: str


def _resnet(block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], **options: Any) -> _Builder:
    return lambda *, classes, channels: ResNet(block, depths, classes=classes, channels=channels, **options)


def _preact(depths: tuple[int, ...], **options: Any) -> _Builder:
    return lambda *, classes, channels: PreActResNet(depths, classes=classes, channels=channels, **options)


def _vgg(stages: tuple[int, ...], **options: Any) -> _Builder:
    return lambda *, classes, channels: VGG(stages, classes=classes, channels=channels, **options)


_PAPER = "the paper's, CIFAR form"
_TORCHVISION = "the paper's, torchvision's form"
_SMALL = "for CPUs: a quarter of the width"
_EIGHTH = "for CPUs: an eighth of the width"
_TINY = "for images of 8x8: three short stages, an eighth of the width"

BASE_MODELS: dict[str, BaseSpec] = {
    "resnet18": BaseSpec(_resnet(BasicBlock, (2, 2, 2, 2)), 32, 1, _PAPER),
    "resnet50": BaseSpec(_resnet(Bottleneck, (3, 4, 6, 3)), 32, 1, _PAPER),
    "vgg11": BaseSpec(_vgg(STAGES["vgg11"]), 32, 32, _PAPER),
    "vgg16": BaseSpec(_vgg(STAGES["vgg16"]), 32, 32, _PAPER),
    "vgg19": BaseSpec(_vgg(STAGES["vgg19"]), 32, 32, _PAPER),
    "resnet18-imagenet": BaseSpec(_resnet(BasicBlock, (2, 2, 2, 2), stem="imagenet"), 224, 1, _TORCHVISION),
    "resnet50-imagenet": BaseSpec(_resnet(Bottleneck, (3, 4, 6, 3), stem="imagenet"), 224, 1, _TORCHVISION),
    "vgg11-imagenet": BaseSpec(_vgg(STAGES["vgg11"], form="imagenet"), 224, 32, _TORCHVISION + ", with BatchNorm"),
    "vgg16-imagenet": BaseSpec(_vgg(STAGES["vgg16"], form="imagenet"), 224, 32, _TORCHVISION + ", with BatchNorm"),
    "vgg19-imagenet": BaseSpec(_vgg(STAGES["vgg19"], form="imagenet"), 224, 32, _TORCHVISION + ", with BatchNorm"),
    "preact-resnet18": BaseSpec(_preact((2, 2, 2, 2)), 32, 1, "the paper's, section on adversarial perturbation"),
    "resnet8": BaseSpec(_resnet(BasicBlock, (1, 1, 1), width=16), 32, 1, "for CPUs: three stages of one block"),
    "resnet18-quarter": BaseSpec(_resnet(BasicBlock, (2, 2, 2, 2), width=16), 32, 1, _SMALL),
    "resnet50-eighth": BaseSpec(_resnet(Bottleneck, (3, 4, 6, 3), width=8), 32, 1, _EIGHTH),
    "vgg11-quarter": BaseSpec(_vgg(STAGES["vgg11"], width=16), 32, 32, _SMALL),
    "vgg16-quarter": BaseSpec(_vgg(STAGES["vgg16"], width=16), 32, 32, _SMALL),
    "vgg19-quarter": BaseSpec(_vgg(STAGES["vgg19"], width=16), 32, 32, _SMALL),
    "preact-resnet18-quarter": BaseSpec(_preact((2, 2, 2, 2), width=16), 32, 1, _SMALL),
    "resnet18-tiny": BaseSpec(_resnet(BasicBlock, (1, 1, 1), width=8), 8, 1, _TINY),
    "resnet50-tiny": BaseSpec(_resnet(Bottleneck, (1, 1, 1), width=8), 8, 1, _TINY),
    "vgg11-tiny": BaseSpec(_vgg((1, 1, 1), width=8), 8, 8, _TINY),
    "vgg16-tiny": BaseSpec(_vgg((1, 2, 2), width=8), 8, 8, _TINY),
    "vgg19-tiny": BaseSpec(_vgg((1, 2, 3), width=8), 8, 8, _TINY),
    "preact-resnet18-tiny": BaseSpec(_preact((1, 1, 1), width=8), 8, 1, _TINY),
}


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model and all that is needed to deploy it.

    Attributes:
        name: Its registry name, or ``package.module:factory`` for a user's own.
        module: The network with its float weights.
        classes: Number of classes.
        channels: Input channels.
        image_size: (H, W) it was made for.
        scheme: How its weights are to be stored.
        input_range: What its inputs are made of.
        trained: How it was trained, for records; empty if unknown.
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
        name: A key of `BASE_MODELS`.
        classes: Number of classes.
        channels: Input channels.
        image_size: (H, W) of the images it will see.
        seed: Seed of the initial weights.
    Raises:
        UnknownNameError: there is no such model.
        ShapeError: the images are too small for it.
    """
    if name not in BASE_MODELS:
        raise unknown_name("base model", name, BASE_MODELS)
    spec = BASE_MODELS[name]
    require(classes >= 2, f"classes must be at least 2: got classes={classes}.")
    require(channels >= 1, f"channels must be at least 1: got channels={channels}.")
    if min(image_size) < spec.smallest:
        fits = ", ".join(other for other, one in BASE_MODELS.items() if one.smallest <= min(image_size))
        raise ShapeError(
            f"images for {name} must be at least {spec.smallest}x{spec.smallest}: got "
            f"{image_size[0]}x{image_size[1]}. Enlarge them with --image-size, or take one of {fits or 'none'}."
        )
    return seeded(lambda: spec.build(classes=classes, channels=channels), seed)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module whose initial weights depend on ``seed`` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def parameter_count(module: nn.Module) -> int:
    """Return how many trainable numbers a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_base(model: BaseModel, *, classes: int, channels: int) -> None:
    """Raise a `ConfigError` unless a base model fits a data set."""
    for what, own, wanted in (("classes", model.classes, classes), ("channels", model.channels, channels)):
        if own != wanted:
            raise ConfigError(f"base model and data must have the same number of {what}: got {own} and {wanted}.")
