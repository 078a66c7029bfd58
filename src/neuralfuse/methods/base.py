"""A method of protection: what it makes of a model that lies in a faulty memory, and what access it needs for that."""

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
    """What a method may learn from, and where it keeps what it has learned.

    Attributes:
        data: Images. Methods train on the training images and calibrate on the validation images, never on the test
            images.
        faults: The faults to prepare for.
        eopm: How a NeuralFuse is trained.
        starts: Folders of generators that know the classes, by name, for a NeuralFuse to start from.
        folder: For what is trained. A training that an interrupted run left there is continued.
        device: Where to compute.
        listeners: Told of a training's steps.
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
    """What a comparison's parts multiply, for methods to tell their own work by.

    Attributes:
        base: Multiplications of the base model for one image.
        generator: The same of the generator before it; 0 without one.
        train_images: Training images.
        qat: How the base model was trained.
        eopm: How a NeuralFuse is trained.
    """

    base: float
    generator: float
    train_images: int
    qat: QatConfig
    eopm: EopmConfig


@dataclass(frozen=True, kw_only=True)
class Protected:
    """A model in its memory, with all that protects it.

    Attributes:
        base: The base model in its memory, as a method left it.
        fuse: The transform of the model's inputs; None for none.
        fitted: Makes a chip's own ``fuse``, once, from its perturbed model and the model in the memory; None where all
            chips share one.
        prepared: Makes what answers on a chip, once, from its perturbed model; None where that answers itself. Called
            on several threads.
        changes: Wrappers around what answers on a chip, the innermost first.
        hardened: Most significant bits of every word whose cells do not fail.
        passes: How often the model runs for one image.
        added_accesses: Accesses of weights (64-bit words, at full voltage) that ``changes`` take for one image.
        added_parameters: Parameters of ``changes``.
    """

    base: DeployedBase
    fuse: nn.Module | None = None
    fitted: Callable[[Perturbed, Deployed], nn.Module] | None = None
    prepared: Callable[[Perturbed], Answer] | None = None
    changes: tuple[Callable[[Answer], Answer], ...] = ()
    hardened: int = 0
    passes: int = 1
    added_accesses: float = 0.0
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
        return replace(self, base=DeployedBase(replace(self.model, module=module), deployed))

    def answer(self, perturbed: Perturbed) -> Answer:
        """Return what answers on a chip, inputs of the model -> logits."""
        return self.around(perturbed if self.prepared is None else self.prepared(perturbed))

    def around(self, model: Answer) -> Answer:
        """Return a model with all that is put around it."""
        for change in self.changes:
            model = change(model)
        return model

    def answering(
        self, change: Callable[[Answer], Answer], *, passes: int = 1, accesses: float = 0.0, parameters: int = 0
    ) -> Protected:
        """Return the same with a wrapper around what answers on a chip.

        Args:
            change: The wrapper.
            passes: How often it runs what it wraps for one image.
            accesses: Accesses of weights that it takes itself for one image, in words of 64 bits.
            parameters: Its own parameters.
        """
        return replace(
            self, changes=(*self.changes, change), passes=self.passes * passes,
            added_accesses=self.added_accesses + accesses, added_parameters=self.added_parameters + parameters,
        )  # fmt: skip

    def faults_left(self, faults: FaultModel) -> FaultModel:
        """Return the faults of a memory some of whose bits do not fail."""
        bits = self.deployed.memory.layout.bits
        return BitRates.protecting(faults, msbs=self.hardened, bits=bits) if self.hardened else faults


@dataclass(frozen=True)
class Method(ABC):
    """A method of protection. A new one is a frozen dataclass of its options, with these names and one method.

    Attributes:
        name: As it is asked for.
        needs: What of the model, the memory or the chip it must have access to.
        prepares_for: Which property of the expected faults it is made for: nothing, only their rate (and so the
            voltage), or the faults themselves and the recipe of a NeuralFuse.
        first: Whether it must come before all others, because it makes the model anew.
        transforms_inputs: Whether it puts a transform before the model. Only one method of a chain may.
        follows_transform: Whether it must come after a method that does.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Access, ...]]
    prepares_for: ClassVar[Preparation] = "faults"
    first: ClassVar[bool] = False
    transforms_inputs: ClassVar[bool] = False
    follows_transform: ClassVar[bool] = False

    @abstractmethod
    def protect(self, made: Protected, context: TrainingContext) -> Protected:
        """Return the model with this protection added to what protects it already.

        Whatever is trained lies in ``context.folder``; the same call again must find it there.
        """

    @property
    def generator(self) -> str | None:
        """The name of the generator that it puts before the model; None for none."""
        return None

    def neuralfuse_training(self, eopm: EopmConfig, *, encodes: bool) -> EopmConfig | None:
        """Return how it trains its generator by EOPM; None if it trains none.

        Before the model as it is, that is a training which the paper's tables share.

        Args:
            eopm: The recipe.
            encodes: Whether the generator encodes the image, so that it can be taught the classes.
        """
        return None

    def training_macs(self, work: Workload) -> float:
        """Return about how many multiplications its trainings take."""
        return 0.0

    def chip_macs(self, work: Workload) -> float:
        """Return about how many multiplications each chip takes before it answers."""
        return 0.0

    def check_rate(self, ber: float) -> None:
        """Raise a `ConfigError` if it cannot prepare for faults at this rate."""
        return

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
    prepares_for: ClassVar[Preparation] = "nothing"

    def protect(self, made: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        return made


def calibration_inputs(made: Protected, context: TrainingContext, count: int) -> Tensor:
    """Return what the model sees of the first validation images of an order that is the same for ever."""
    data = context.data
    images = data.validation.images[data.validation.order(data.name, "calibration images")[:count]]
    inputs = made.deployed.input_range.from_images(images)
    return inputs if made.fuse is None else transform(made.fuse, inputs)


def check_option(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise a `ConfigError` unless a method's option lies in [low, high]."""
    legal = f"in {low:g}..{high:g}" if math.isfinite(high) else f"at least {low:g}"
    require(math.isfinite(value) and low <= value <= high, f"{name} must be {legal}: got {name}={value:g}.")
