"""A step of a table: something that is done once, kept under an address, and about how much work it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache, cached_property
from typing import Any, ClassVar

import torch

from neuralfuse.energy import GENERATOR_LAYERS, Counts, count
from neuralfuse.nets import GENERATORS, base_spec
from neuralfuse.quant import DEFAULT_LAYERS
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
    own = name in GENERATORS
    if name == "uip":  # adds to the image and multiplies nothing
        return Counts.none()
    with torch.device("meta"):
        if own:
            network = GENERATORS[name](facts.channels, size)
        else:
            network = base_spec(name).build(classes=facts.classes, channels=facts.channels)
    layers = GENERATOR_LAYERS if own else DEFAULT_LAYERS
    return count(network, channels=facts.channels, image_size=size, layers=layers)
