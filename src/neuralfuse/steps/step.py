"""A step of a table: something that is done once, kept under an address, and about how much work it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache, cached_property
from typing import Any, ClassVar

import torch

from neuralfuse.energy import GENERATOR_LAYERS, Counts, count
from neuralfuse.errors import ConfigError
from neuralfuse.nets import GENERATORS, base_spec, encodes_images, plugins, skeleton
from neuralfuse.steps.scale import FACTS, ImageSpec
from neuralfuse.steps.store import address
from neuralfuse.steps.workspace import Workspace


class Step(ABC):
    """Something that is done once; its address says what it depends on."""

    kind: ClassVar[str]

    @property
    def needs(self) -> tuple[Step, ...]:
        """The steps that must be finished before."""
        return ()

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return all that the result depends on, with the steps that it needs by their addresses."""

    @abstractmethod
    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """Do it, going on from what an interrupted run left in its folder; return its record."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it does, in a few words."""

    @property
    @abstractmethod
    def macs(self) -> float:
        """About how many multiplications it takes, at most."""

    @cached_property
    def address(self) -> str:
        """Its name in a store."""
        return address(self.kind, self.config())


@cache
def counts(name: str, images: ImageSpec) -> Counts:
    """Return what one pass of a base model or generator over one of these images takes."""
    facts = FACTS[images.name]
    size = (images.size or facts.size,) * 2
    if is_generator(name):
        network = skeleton(name, channels=facts.channels, image_size=size)
        try:
            return count(network, channels=facts.channels, image_size=size, layers=GENERATOR_LAYERS)
        except ConfigError:  # it multiplies nothing, as uip
            return Counts.none()
    with torch.device("meta"):
        network = base_spec(name).build(classes=facts.classes, channels=facts.channels)
    return count(network, channels=facts.channels, image_size=size)


def is_generator(name: str) -> bool:
    """Say whether a name is that of a generator, and not of a base model."""
    return name in GENERATORS or ":" in name or name in plugins()


def encodes(generator: str, images: ImageSpec) -> bool:
    """Say whether a generator encodes these images, so that it can be taught the classes."""
    facts = FACTS[images.name]
    return encodes_images(generator, facts.channels, (images.size or facts.size,) * 2)
