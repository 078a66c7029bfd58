"""Protection fitted to one chip. Its faults are permanent, so its inputs can be transformed for this chip alone."""

from __future__ import annotations

import copy
from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from neuralfuse.blackbox import Function, LimitedBox, tune
from neuralfuse.config import EopmConfig, TuningConfig
from neuralfuse.data import DataSet
from neuralfuse.errors import ConfigError, require
from neuralfuse.faults import OneChip
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed, Perturbed
from neuralfuse.methods.base import Access, Answer, Method, Protected, TrainingContext, Workload, check_option
from neuralfuse.train import train_fuse, training_images


@dataclass(frozen=True)
class Fitted(Method):
    """A method that fits the NeuralFuse to each chip. The labels are the chip's own answers at nominal voltage.

    Attributes:
        images: Number of training images to use, without their labels (0: all).
    """

    follows_transform: ClassVar[bool] = True
    images: int = 1000

    def __post_init__(self) -> None:
        check_option("images", self.images, 0)

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        fuse, name = protected.fuse, self.name
        if not isinstance(fuse, NeuralFuse):
            raise ConfigError(f"{name} must come after a NeuralFuse, e.g. unetl+{name}: there is none before it.")
        require(
            protected.prepared is None and not protected.changes,
            f"{name} must come before methods that change answers.",
        )
        require(
            protected.fitted is None, f"only one method may fit a NeuralFuse to a chip: {name} comes after another one."
        )
        training_images(context.data, self.images)

        def fitted(chip: Perturbed, deployed: Deployed) -> NeuralFuse:
            return self.fit(fuse, chip, deployed, context)

        return replace(protected, fitted=fitted)

    @abstractmethod
    def fit(self, fuse: NeuralFuse, chip: Perturbed, deployed: Deployed, context: TrainingContext) -> NeuralFuse:
        """Return a NeuralFuse for one chip.

        Args:
            fuse: The general NeuralFuse, in eval mode; not modified.
            chip: The model on the chip.
            deployed: The model in its memory, without faults.
            context: The data and recipe to train with.
        """


@dataclass(frozen=True)
class Calibrated(Fitted):
    """The NeuralFuse is trained further on each chip, by the gradient through the chip's own faults.

    This is the same as ``neuralfuse train --start FUSE --faults CHIP --labels model``.

    Attributes:
        images: See `Fitted`.
        steps: Optimizer steps per chip.
        batch: Maximum number of images per step.
        lr: Learning rate.
    """

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[tuple[Access, ...]] = ("inputs", "gradients", "each chip")
    steps: int = 100
    batch: int = 64
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("steps", self.steps, 1)
        check_option("batch", self.batch, 2)
        check_option("lr", self.lr, 1e-9, 1.0)

    def fit(self, fuse: NeuralFuse, chip: Perturbed, deployed: Deployed, context: TrainingContext) -> NeuralFuse:
        """See `Fitted`."""
        own, faults = copy.deepcopy(fuse), OneChip(faults=chip.chip.faults, seed=chip.chip.seed)
        train_fuse(own, deployed, context.data, self.training(context.eopm), faults=faults)
        return own

    def chip_macs(self, work: Workload) -> float:
        """See `Method`."""
        return self.training(work.eopm).macs(work.train_images, work.base, work.generator)

    def training(self, eopm: EopmConfig) -> EopmConfig:
        """Return the recipe for one chip, from that of the general module."""
        return replace(
            eopm, labels="model", images=self.images, max_steps=self.steps, epochs=self.steps, batch=self.batch,
            lr=self.lr, n_chips=1, validate_every=self.steps, class_head=0.0, adversarial_bits=0,
        )  # fmt: skip


@dataclass(frozen=True)
class Tuned(Fitted):
    """The NeuralFuse is fitted to each chip by queries alone. A result that is no better is discarded.

    This is the same as ``neuralfuse tune`` with the answers at nominal voltage as labels.

    Attributes:
        images: See `Fitted`.
        queries: Number of images sent to each chip, including those that judge the result.
    """

    name: ClassVar[str] = "tune"
    needs: ClassVar[tuple[Access, ...]] = ("inputs", "each chip")
    queries: int = TuningConfig.queries

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tuning().steps(TuningConfig.judged)

    def chip_macs(self, work: Workload) -> float:
        """See `Method`: each image goes to the chip and, for its label, to the model at nominal voltage."""
        return self.queries * (work.generator + 2 * work.base)

    def tuning(self, seed: int = 0) -> TuningConfig:
        """Return the tuning configuration for one chip."""
        return TuningConfig(queries=self.queries, seed=seed)

    def to_config(self) -> dict[str, Any]:
        """See `Method`."""
        usual = {name: value for name, value in asdict(self.tuning()).items() if name != "seed"}
        return {**super().to_config(), **usual}

    def fit(self, fuse: NeuralFuse, chip: Perturbed, deployed: Deployed, context: TrainingContext) -> NeuralFuse:
        """See `Fitted`."""
        with ExitStack() as stack:
            faulty, clean = (stack.enter_context(_box(model, fuse, context.data)) for model in (chip, deployed))
            tuned, _ = tune(
                fuse, faulty, context.data, self.tuning(context.eopm.seed), images=self.images, nominal=clean
            )
        return tuned


def _box(model: Answer, fuse: NeuralFuse, data: DataSet) -> LimitedBox:
    """Wrap a model as a black box."""

    def ask(x: NDArray[np.float32]) -> NDArray[Any]:
        with torch.inference_mode():
            return model(torch.from_numpy(x).to(fuse.scale.device)).float().cpu().numpy()

    return LimitedBox(Function(ask, "a chip"), classes=len(data.classes))
