"""The interface of protection methods: a method takes a protected model and protects it more."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import DataSet
from neuralfuse.errors import require
from neuralfuse.faults import BitRates, FaultModel
from neuralfuse.memory import Deployed, Perturbed, Readout, deploy
from neuralfuse.nets import BaseModel, DeployedBase
from neuralfuse.scoring import transform
from neuralfuse.train import Listener

Access = Literal[
    "inputs", "gradients", "statistics", "activations", "weights", "training", "memory", "fault map", "each chip"
]
Preparation = Literal["nothing", "rate", "faults"]
Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """The data, faults and recipe that a method may train with, and the folder for its results.

    Attributes:
        data: The data set. Methods train on the training images and calibrate on the validation images. They never
            use the test images.
        faults: The fault model to prepare for.
        eopm: Recipe of a NeuralFuse.
        starts: Folders of pretrained generators, by the generator's name.
        folder: Folder for trained weights. An interrupted training in it is resumed.
        device: Device to compute on.
        listeners: Objects that are notified of a training's steps.
    """

    data: DataSet
    faults: FaultModel
    eopm: EopmConfig = field(default_factory=EopmConfig)
    starts: dict[str, Path] = field(default_factory=dict)
    folder: Path
    device: torch.device
    listeners: Sequence[Listener] = ()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Multiplication counts and recipes from which a method estimates its own cost.

    Attributes:
        base: Multiplications of the base model per image.
        generator: Multiplications of the generator per image; 0 without one.
        train_images: Number of training images.
        qat: Recipe of the base model.
        eopm: Recipe of a NeuralFuse.
    """

    base: float
    generator: float
    train_images: int
    qat: QatConfig
    eopm: EopmConfig


@dataclass(frozen=True, kw_only=True)
class Protected:
    """A model in its memory, with its protections.

    Attributes:
        base: The base model in its memory, as the last method left it.
        fuse: The transform of the model's inputs; None for none.
        fitted: Called once per chip with the perturbed model and the deployed model; returns the chip's own ``fuse``.
            None if all chips share one.
        prepared: Called once per chip with the perturbed model, on several threads; returns the function that answers
            in its place. None if the perturbed model answers itself.
        changes: Wrappers around the answering function, the innermost first.
        hardened: Number of most significant bits per word whose cells do not fail.
        passes: Number of times that the model runs per image.
        added_accesses: Weight accesses of ``changes`` per image (64-bit words, at full voltage).
        added_parameters: Number of parameters of ``changes``.
    """

    base: DeployedBase
    fuse: nn.Module | None = None
    fitted: Callable[[Perturbed, Deployed], nn.Module] | None = None
    prepared: Callable[[Perturbed], Answer] | None = None
    changes: tuple[Callable[[Answer], Answer], ...] = ()
    hardened: int = 0
    passes: int = 1
    added_accesses: float = 0
    added_parameters: int = 0

    @property
    def model(self) -> BaseModel:
        """The base model."""
        return self.base.model

    @property
    def deployed(self) -> Deployed:
        """The base model on stored weights."""
        return self.base.deployed

    def holding(self, module: nn.Module, *, readout: Readout | None = None, **running: Any) -> Protected:
        """Return a copy with another module, or another readout, in the memory.

        Args:
            module: The module that replaces the model's. Its weights are stored in the same way.
            readout: How the memory handles faulty words. By default, the current readout.
            running: Fields of `Running` to change. A module with hooks or with a modified BatchNorm needs
                ``fold=False``.
        """
        old = self.deployed
        deployed = deploy(
            module, scheme=old.memory.scheme, layers=old.memory.layers, input_range=old.input_range,
            readout=readout or old.memory.readout, activations=old.activations, running=replace(old.running, **running),
        )  # fmt: skip
        return replace(self, base=DeployedBase(replace(self.model, module=module), deployed))

    def answer(self, perturbed: Perturbed) -> Answer:
        """Return the function that answers on a chip: model inputs -> logits."""
        return self.around(perturbed if self.prepared is None else self.prepared(perturbed))

    def around(self, model: Answer) -> Answer:
        """Return a model inside all wrappers of ``changes``."""
        for change in self.changes:
            model = change(model)
        return model

    def answering(
        self, change: Callable[[Answer], Answer], *, passes: int = 1, accesses: float = 0, parameters: int = 0
    ) -> Protected:
        """Return a copy with one more wrapper around the function that answers on a chip.

        Args:
            change: The wrapper.
            passes: Number of times that the wrapper runs the wrapped function per image.
            accesses: The wrapper's own weight accesses per image, in 64-bit words.
            parameters: Number of the wrapper's own parameters.
        """
        return replace(
            self, changes=(*self.changes, change), passes=self.passes * passes,
            added_accesses=self.added_accesses + accesses, added_parameters=self.added_parameters + parameters,
        )  # fmt: skip

    def faults_left(self, faults: FaultModel) -> FaultModel:
        """Return the faults that remain once the hardened bits cannot fail."""
        bits = self.deployed.memory.layout.bits
        return BitRates.protecting(faults, msbs=self.hardened, bits=bits) if self.hardened else faults


@dataclass(frozen=True)
class Method(ABC):
    """A method of protection. Subclasses are frozen dataclasses of the method's options and implement `protect`.

    Attributes:
        name: The method's name, as in `METHODS` and on the command line.
        needs: The parts of the model, memory or chip that the method must have access to.
        prepares_for: Which property of the expected faults the method is trained for: ``nothing``; only their
            ``rate`` (and thus the voltage); or the ``faults`` themselves, with the recipe of a NeuralFuse.
        first: Whether the method must come before all others, because it retrains the model.
        transforms_inputs: Whether it puts a transform before the model. Only one method of a chain may do so.
        follows_transform: Whether it must come after a method that transforms inputs.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Access, ...]]
    prepares_for: ClassVar[Preparation] = "faults"
    first: ClassVar[bool] = False
    transforms_inputs: ClassVar[bool] = False
    follows_transform: ClassVar[bool] = False

    @abstractmethod
    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """Return the model with this protection on top of the ones it has.

        Trained weights are kept in ``context.folder``. A second call with the same arguments must reuse them.
        """

    @property
    def generator(self) -> str | None:
        """Name of the generator that the method puts before the model; None for none."""
        return None

    def neuralfuse_training(self, eopm: EopmConfig, *, encodes: bool) -> EopmConfig | None:
        """Return the configuration of the method's own EOPM training; None if it trains no generator.

        For an unchanged base model, the training is shared with the paper's tables.

        Args:
            eopm: The recipe of a NeuralFuse.
            encodes: Whether the generator encodes the image, so that it can be taught the classes.
        """
        return None

    def training_macs(self, work: Workload) -> float:
        """Return the approximate number of multiplications of the method's trainings."""
        return 0.0

    def chip_macs(self, work: Workload) -> float:
        """Return the approximate number of multiplications per chip before the chip answers."""
        return 0.0

    def check_rate(self, ber: float) -> None:
        """Raise a `ConfigError` if the method cannot prepare for faults at this rate."""
        return

    @property
    def label(self) -> str:
        """The method's name, with the options that differ from their defaults."""
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
    """The unprotected baseline."""

    name: ClassVar[str] = "none"
    needs: ClassVar[tuple[Access, ...]] = ()
    prepares_for: ClassVar[Preparation] = "nothing"

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        return protected


def calibration_inputs(protected: Protected, context: TrainingContext, count: int) -> Tensor:
    """Return ``count`` validation images as model inputs, behind ``protected.fuse`` if any; the same in every run."""
    data = context.data
    images = data.validation.images[data.validation.order(data.name, "calibration images")[:count]]
    inputs = protected.deployed.input_range.from_images(images)
    return inputs if protected.fuse is None else transform(protected.fuse, inputs)


def check_option(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise a `ConfigError` unless a method's option lies in [low, high]."""
    legal = f"in {low:g}..{high:g}" if math.isfinite(high) else f"at least {low:g}"
    require(math.isfinite(value) and low <= value <= high, f"{name} must be {legal}: got {name}={value:g}.")
