"""Protection fitted to one chip: its faults are permanent, so what its users send it may be made for it alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

from neuralfuse.config import EopmConfig
from neuralfuse.errors import ConfigError, require
from neuralfuse.faults import OneChip
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed, Perturbed
from neuralfuse.methods.base import Access, Method, Protected, Setting, check_option
from neuralfuse.train import train_fuse, training_images


@dataclass(frozen=True)
class Calibrated(Method):
    """The NeuralFuse before the model is trained further on each chip by the chip's own answers at nominal voltage.

    No labels are needed, but the gradient through the chip's own faults, or a map of them. The same as
    ``neuralfuse train --start FUSE --faults CHIP --labels model``.

    Attributes:
        images: Training images used, without their labels; 0 for all.
        steps: Of the optimizer, on each chip.
        batch: Images a step, at most.
        lr: Rate of learning.
    """

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[tuple[Access, ...]] = ("inputs", "gradients", "each chip")
    images: int = 1000
    steps: int = 100
    batch: int = 64
    lr: float = 1e-3

    def __post_init__(self) -> None:
        check_option("images", self.images, 0)
        check_option("steps", self.steps, 1)
        check_option("batch", self.batch, 2)
        check_option("lr", self.lr, 1e-9, 1.0)

    def protect(self, made: Protected, setting: Setting) -> Protected:
        """See `Method`."""
        fuse, config = made.fuse, self.training(setting.eopm)
        if not isinstance(fuse, NeuralFuse):
            raise ConfigError("calibrate must come after a NeuralFuse, e.g. unetl+calibrate: there is none before it.")
        require(made.prepared is None and not made.changes, "calibrate must come before methods that change answers.")
        require(made.fitted is None, "a NeuralFuse must be calibrated to a chip once: calibrate came twice.")
        training_images(setting.data, self.images)

        def fitted(chip: Perturbed, deployed: Deployed) -> NeuralFuse:
            own = copy.deepcopy(fuse)
            faults = OneChip(faults=chip.chip.faults, seed=chip.chip.seed)
            train_fuse(own, deployed, setting.data, replace(config, ber=faults.ber), faults=faults)
            return own

        return replace(made, fitted=fitted)

    def training(self, eopm: EopmConfig) -> EopmConfig:
        """Return how a general module's training goes on for one chip."""
        return replace(
            eopm, labels="model", images=self.images, max_steps=self.steps, epochs=self.steps, batch=self.batch,
            lr=self.lr, n_chips=1, validate_every=self.steps, class_head=0.0, adversarial_bits=0,
        )  # fmt: skip
