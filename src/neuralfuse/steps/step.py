"""The interface of steps: a step is done once, is kept under its address, and estimates its own work."""

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
    """A training or a measurement that is done once. Its address is a digest of everything that it depends on."""

    kind: ClassVar[str]

    @property
    def needs(self) -> tuple[Step, ...]:
        """The steps that must be finished before this one."""
        return ()

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return everything that the result depends on, as JSON. Needed steps are named by their addresses."""

    @abstractmethod
    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """Do the step and return its record. Resume from the files of an interrupted run in its folder."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The step in a few words."""

    @property
    @abstractmethod
    def macs(self) -> float:
        """Approximate upper limit of the step's multiplications."""

    @cached_property
    def address(self) -> str:
        """The step's name in a store."""
        return address(self.kind, self.config())


@cache
def counts(name: str, images: ImageSpec) -> Counts:
    """Return the operation counts of a base model or generator for one of these images."""
    facts = FACTS[images.name]
    size = (images.size or facts.size,) * 2
    if is_generator(name):
        network = skeleton(name, channels=facts.channels, image_size=size)
        try:
            return count(network, channels=facts.channels, image_size=size, layers=GENERATOR_LAYERS)
        except ConfigError:  # a generator without multiplications, such as uip
            return Counts.none()
    with torch.device("meta"):
        network = base_spec(name).build(classes=facts.classes, channels=facts.channels)
    return count(network, channels=facts.channels, image_size=size)


def is_generator(name: str) -> bool:
    """Say whether a name is the name of a generator, not of a base model."""
    return name in GENERATORS or ":" in name or name in plugins()


def encodes(generator: str, images: ImageSpec) -> bool:
    """Say whether a generator encodes these images, so that it can be taught the classes."""
    facts = FACTS[images.name]
    return encodes_images(generator, facts.channels, (images.size or facts.size,) * 2)
