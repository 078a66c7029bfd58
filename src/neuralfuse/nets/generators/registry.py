"""Generators by name: the library's, those of plugins, and ``package.module:factory`` of a user's own.

Whatever makes a generator is a factory: ``factory(channels, image_size) -> nn.Module``, from images (N, C, H, W) on
[-1, 1] to a perturbation of the same shape. The module may have an attribute ``narrowest``: the layer that encodes the
image, and its channels. Then it can be taught the classes. A plugin is an installed package with an entry point in the
group ``neuralfuse.generators``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points

import torch
from torch import nn

from neuralfuse.errors import ConfigError, require, unknown_name
from neuralfuse.nets.base import BASE_MODELS, seeded
from neuralfuse.nets.generators import encoder, unet
from neuralfuse.nets.generators.uip import UIP
from neuralfuse.plugins import code_digest, load

Factory = Callable[[int, tuple[int, int]], nn.Module]
PLUGINS = "neuralfuse.generators"


def _of_any_size(build: Callable[..., nn.Module], *form: object) -> Factory:
    return lambda channels, image_size: build(*form, channels)


GENERATORS: dict[str, Factory] = {
    **{name: _of_any_size(encoder.Encoder, *recipe) for name, recipe in encoder.GENERATORS.items()},
    **{name: _of_any_size(unet.UNet, width) for name, width in unet.GENERATORS.items()},
    "uip": UIP,
}
"""The six generators of the paper and its baseline; parameter counts as in its Table 7."""


def plugins() -> dict[str, EntryPoint]:
    """Return the generators of installed plugins by name; none of them is loaded.

    A plugin gets no name of the library's own, and none with other signs than letters, digits, - and _.
    """
    taken = {*GENERATORS, *BASE_MODELS}
    found = [one for one in entry_points(group=PLUGINS) if one.name not in taken]
    return {one.name: one for one in found if re.fullmatch(r"[A-Za-z0-9][\w-]*", one.name)}


def check_generator(reference: str) -> None:
    """Raise an `UnknownNameError` unless this may name a generator; nothing is loaded."""
    if reference not in GENERATORS and ":" not in reference and reference not in plugins():
        raise unknown_name("generator", reference, [*GENERATORS, *plugins(), "package.module:factory"])


def factory(reference: str) -> Factory:
    """Return what makes the generator of this name. Runs the code of a plugin or of a user's own.

    Raises:
        UnknownNameError: there is no such generator.
        ConfigError: a user's own cannot be imported.
    """
    check_generator(reference)
    if reference in GENERATORS:
        return GENERATORS[reference]
    return partial(_made_by, reference, _loaded(reference))


def code_of(reference: str) -> dict[str, str]:
    """Return what tells whether a generator's code is the same, as JSON: a digest of its file; empty for the library's.

    Runs the code of a plugin or of a user's own.
    """
    if reference in GENERATORS:
        return {}
    where = reference if ":" in reference else plugins()[reference].value
    return {"code": code_digest(_loaded(reference), where)}


def _loaded(reference: str) -> Factory:
    if ":" in reference:
        return load(reference, what="generator")  # type: ignore[no-any-return]
    try:
        return plugins()[reference].load()  # type: ignore[no-any-return]
    except Exception as error:  # the code is another's, and may raise anything
        raise ConfigError(f"generator {reference} must be a plugin that can be imported: {error}.") from error


def _made_by(reference: str, make: Factory, channels: int, image_size: tuple[int, int]) -> nn.Module:
    try:
        made = make(channels, image_size)
    except Exception as error:  # the code is the user's, and may raise anything
        raise ConfigError(
            f"generator {reference} must be a factory(channels, image_size) that runs: {type(error).__name__}: {error}."
        ) from error
    kind = type(made).__name__
    require(isinstance(made, nn.Module), f"generator {reference} must return an nn.Module: got {kind}.")
    return made


def generator(
    reference: str, *, channels: int = 3, image_size: tuple[int, int] = (32, 32), seed: int
) -> nn.Module:  # fmt: skip
    """Return an untrained generator.

    Args:
        reference: A key of `GENERATORS`, a plugin's name, or ``package.module:factory`` (runs that code).
        channels: Channels of the images.
        image_size: (H, W) of the images.
        seed: Seed of the initial weights.
    Raises:
        UnknownNameError: there is no such generator.
        ConfigError: a user's own cannot be imported, fails, or returns something else than a module.
    """
    make = factory(reference)
    require(channels >= 1, f"channels must be at least 1: got channels={channels}.")
    return seeded(lambda: make(channels, image_size), seed)


@cache
def encodes_images(reference: str, channels: int, image_size: tuple[int, int]) -> bool:
    """Say whether a generator encodes the image, so that it can be taught the classes."""
    made = skeleton(reference, channels=channels, image_size=image_size)
    return getattr(made, "narrowest", None) is not None


def skeleton(reference: str, *, channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return a generator to be counted: without weights where it can be made so, else with some."""
    make = factory(reference)
    try:
        with torch.device("meta"):
            return make(channels, image_size)
    except ConfigError:  # it insists on real weights
        return generator(reference, channels=channels, image_size=image_size, seed=0)
