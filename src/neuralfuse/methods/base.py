"""A method of protection: what it makes of a model that lies in a faulty memory, and what access it needs for that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from neuralfuse.config import EopmConfig
from neuralfuse.data import DataSet
from neuralfuse.errors import require
from neuralfuse.faults import FaultModel
from neuralfuse.memory import Deployed, Perturbed, Readout, deploy
from neuralfuse.nets import BaseModel
from neuralfuse.seeds import generator
from neuralfuse.train import Listener

Access = Literal["inputs", "gradients", "statistics", "activations", "weights", "training", "memory", "fault map"]
Answer = Callable[[Tensor], Tensor]
OnChip = Callable[[Perturbed], Answer]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a method works: what it may learn from, and where it keeps what it has learned.

    Attributes:
        data: Images; methods train on the training images and calibrate on the validation images, never on the test
            images.
        faults: The faults to prepare for.
        eopm: How a NeuralFuse is trained, but for the faults.
        starts: Folders of generators that know the classes, by name, for a NeuralFuse to start from.
        folder: For what is trained; what an interrupted run left there is gone on from.
        device: Where to compute.
        listeners: Who to tell of a training's steps.
    """

    data: DataSet
    faults: FaultModel
    eopm: EopmConfig = field(default_factory=EopmConfig)
    starts: dict[str, Path] = field(default_factory=dict)
    folder: Path
    device: torch.device
    listeners: Sequence[Listener] = ()


@dataclass(frozen=True, kw_only=True)
class Protected:
    """A model in its memory, with all that protects it.

    Attributes:
        model: The base model, as a method left it.
        deployed: The same in its memory.
        fuse: What its inputs pass through first; None for nothing.
        on_chip: What is made of each perturbed model before it answers; None for nothing.
        hardened: Most significant bits of every word whose cells do not fail.
    """

    model: BaseModel
    deployed: Deployed
    fuse: nn.Module | None = None
    on_chip: OnChip | None = None
    hardened: int = 0

    def holding(self, module: nn.Module, *, readout: Readout | None = None, **running: Any) -> Protected:
        """Return the same with another module, or another readout, in the memory.

        Args:
            module: In the place of the model's; its weights are stored as the model's are.
            readout: What the memory makes of faulty words; as it is by default.
            running: Fields of `Running` to change. A module with hooks, or with BatchNorm that does more than usual,
                needs ``fold=False``.
        """
        old = self.deployed
        deployed = deploy(
            module, scheme=old.memory.scheme, layers=old.memory.layers, input_range=old.input_range,
            readout=readout or old.memory.readout, activations=old.activations, running=replace(old.running, **running),
        )  # fmt: skip
        return replace(self, model=replace(self.model, module=module), deployed=deployed)

    def answer(self, perturbed: Perturbed) -> Answer:
        """Return what answers on a chip, inputs of the model -> logits."""
        return perturbed if self.on_chip is None else self.on_chip(perturbed)

    def answering(self, change: Callable[[Answer], Answer]) -> Protected:
        """Return the same with something around whatever answers on a chip."""
        return replace(self, on_chip=lambda perturbed: change(self.answer(perturbed)))

    def replacing(self, on_chip: OnChip) -> Protected:
        """Return the same with something in the place of each perturbed model.

        Raises:
            ConfigError: a method before this one is around it already.
        """
        require(self.on_chip is None, "a method that replaces what runs on a chip must come before those around it.")
        return replace(self, on_chip=on_chip)


@dataclass(frozen=True)
class Method(ABC):
    """A method of protection. A new one is a frozen dataclass of its options, with these names and one method.

    Attributes:
        name: As it is asked for.
        needs: What of the model, the memory or the chip it must have access to.
        for_faults: Whether what it makes depends on the faults it prepares for, or on how a NeuralFuse is trained.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Access, ...]]
    for_faults: ClassVar[bool] = True

    @abstractmethod
    def protect(self, made: Protected, setting: Setting) -> Protected:
        """Return the model with this protection added to what protects it already.

        Whatever is trained lies in ``setting.folder``; the same call again must find it there.
        """

    @property
    def label(self) -> str:
        """Its name, with the options that differ from the usual ones."""
        options = [
            f"{one.name}={value:g}" if isinstance(value := getattr(self, one.name), float) else f"{one.name}={value}"
            for one in fields(self)
            if getattr(self, one.name) != one.default
        ]
        return self.name + (f":{','.join(options)}" if options else "")

    def to_config(self) -> dict[str, Any]:
        """Return the method as JSON."""
        return {"method": self.name, **asdict(self)}


@dataclass(frozen=True)
class NoProtection(Method):
    """The model as it is."""

    name: ClassVar[str] = "none"
    needs: ClassVar[tuple[Access, ...]] = ()
    for_faults: ClassVar[bool] = False

    def protect(self, made: Protected, setting: Setting) -> Protected:
        """See `Method`."""
        return made


def calibration_images(setting: Setting, count: int) -> Tensor:
    """Return the first validation images of an order that is the same for ever: uint8 (count, C, H, W)."""
    data = setting.data
    require(count >= 1, f"images must be at least 1: got images={count}.")
    order = torch.randperm(len(data.validation), generator=generator(data.name, "calibration images"))
    return data.validation.images[order[:count].to(data.validation.images.device)]
