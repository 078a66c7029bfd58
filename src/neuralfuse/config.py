"""Options of running and training, as validated frozen dataclasses. Without torch, so that the CLI starts fast."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from neuralfuse.errors import require, unknown_name

Schedule = Literal["constant", "step", "cosine"]
Optimizer = Literal["sgd", "adam"]
Estimator = Literal["split", "crossed"]
Autocast = Literal["bf16", "fp16"]
Labels = Literal["data", "model"]


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a deployed model computes.

    The first run compares each optimization with the unoptimized model, on two inputs. Optimizations that change the
    outputs are not used, so that no option here can break a model.

    Attributes:
        channels_last: Store images and convolution weights with channels last.
        fold: Merge frozen BatchNorm into the convolution before it, if the model can be traced.
        micro_batch: Maximum number of images per pass of the base model; 0 for all. By default, as many as fit on a
            GPU, and 65536 pixels' worth (at least 8 images) on a CPU, to stay in its cache. Use 0 for a model whose
            output for an image depends on the whole batch.
        autocast: Run in bf16 or fp16 by PyTorch's autocast. Its rounding changes results.
        compile: Compile the model with torch.compile.
    """

    channels_last: bool = True
    fold: bool = True
    micro_batch: int | None = None
    autocast: Autocast | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        rows = self.micro_batch
        require(rows is None or rows >= 0, f"micro_batch must be at least 0: got micro_batch={rows}.")
        if self.autocast not in (None, *get_args(Autocast)):
            raise unknown_name("autocast type", str(self.autocast), get_args(Autocast))

    def to_config(self) -> dict[str, Any]:
        """Return the options that change results by more than rounding of sums, as JSON; empty by default."""
        return {} if self.autocast is None else {"autocast": self.autocast}


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Options of every training.

    Attributes:
        epochs: Number of passes over the training images.
        max_steps: Maximum number of steps; 0 for no limit.
        batch: Images per step.
        lr: Peak learning rate.
        optimizer: sgd (momentum 0.9) or adam (betas 0.5, 0.999, as the reference).
        schedule: Learning-rate schedule. constant; step: times 0.96 every 500 steps, as the reference; cosine: warm-up
            over the first tenth of the steps, then decay to zero.
        average: Decay of the exponential moving average of the weights (0: none). Validation and the saved module use
            the average.
        weight_decay: L2 penalty of SGD.
        nesterov: Use Nesterov momentum in SGD.
        augment: Augmentation of training images: none, shift, crop, crop-flip, signs, paper-signs (the reference's for
            GTSRB) or resized-crop (for ImageNet). auto and paper choose one by data set.
        validate_every: Steps between validations; 0 for once per epoch.
        patience: Early stopping after this many validations without improvement; 0 for never.
        seed: Seed of all randomness of the training.
    """

    epochs: int
    batch: int
    lr: float
    optimizer: Optimizer
    max_steps: int = 0
    schedule: Schedule = "cosine"
    average: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = True
    augment: str = "auto"
    validate_every: int = 0
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._at_least(1, "epochs", "batch")
        self._at_least(0, "max_steps", "weight_decay", "validate_every", "patience", "seed")
        require(0 <= self.average < 1, f"average must be in [0, 1): got average={self.average}.")
        require(self.lr > 0 and math.isfinite(self.lr), f"lr must be positive: got lr={self.lr}.")
        for kind, value, legal in (("optimizer", self.optimizer, Optimizer), ("schedule", self.schedule, Schedule)):
            if value not in get_args(legal):
                raise unknown_name(kind, value, get_args(legal))

    def to_config(self) -> dict[str, Any]:
        """Return the configuration as JSON, for records."""
        return asdict(self)

    def images_seen(self, train_images: int) -> float:
        """Return the number of images that training processes, over all epochs."""
        steps = self.epochs * (train_images // min(self.batch, train_images))
        return float(min(steps, self.max_steps or steps) * self.batch)

    def lr_at(self, step: int, total: int) -> float:
        """Return the learning rate of one step (0-based) of ``total``."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr * 0.96 ** (step // 500)
        warm = max(1, total // 10)
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            require(value >= least, f"{name} must be at least {least}: got {name}={value}.")

    def _word_width(self, name: str) -> None:
        value = getattr(self, name)
        require(value == 0 or 2 <= value <= 16, f"{name} must be 0 (floating point) or in 2..16: got {name}={value}.")


@dataclass(frozen=True, kw_only=True)
class QatConfig(LoopConfig):
    """Options to train a base model. The defaults are the short recipe.

    Attributes:
        bits: Width of a stored word to train for; 0 trains in floating point.
        label_smoothing: Share of the target probability that is spread over all classes.
        awp: Adversarial weight perturbation: each step moves the weights by this share of their norm to where the loss
            is higher (0: none).
        clip: Largest magnitude of a stored weight (weight clipping); 0 for no limit.
    """

    epochs: int = 15
    batch: int = 128
    lr: float = 0.1
    optimizer: Optimizer = "sgd"
    weight_decay: float = 5e-4
    bits: int = 8
    label_smoothing: float = 0.1
    awp: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._word_width("bits")
        value = self.label_smoothing
        require(0 <= value < 1, f"label_smoothing must be in [0, 1): got label_smoothing={value}.")
        require(0 <= self.awp < 1, f"awp must be in [0, 1): got awp={self.awp}.")
        require(self.clip >= 0 and math.isfinite(self.clip), f"clip must be at least 0: got clip={self.clip}.")

    def to_config(self) -> dict[str, Any]:
        """Return the configuration as JSON.

        Newer options appear only if they are used, so that the configurations of older records and checkpoints still
        match.
        """
        made = super().to_config()
        return {name: value for name, value in made.items() if name != "clip" or self.clip}

    def macs(self, train_images: int, model: float) -> float:
        """Return the approximate number of multiplications of the training; ``model`` is that of one image."""
        return (6.0 if self.awp else 3.0) * self.images_seen(train_images) * model


# "paper" is the reference's recipe: 300 epochs at a small constant learning rate, plain momentum, its own augmentation.
BASE_RECIPES: dict[str, QatConfig] = {
    "short": QatConfig(),
    "paper": QatConfig(
        epochs=300,
        batch=256,
        lr=1e-3,
        schedule="constant",
        weight_decay=0.0,
        nesterov=False,
        augment="paper",
        label_smoothing=0.0,
    ),
}


def base_recipe(name: str, **changes: Any) -> QatConfig:
    """Return a recipe of `BASE_RECIPES` with some fields changed.

    Raises:
        UnknownNameError: there is no such recipe.
    """
    if name not in BASE_RECIPES:
        raise unknown_name("recipe", name, BASE_RECIPES)
    return replace(BASE_RECIPES[name], **changes)


@dataclass(frozen=True, kw_only=True)
class EopmConfig(LoopConfig):
    """Options to train NeuralFuse. A constant learning rate with weight averaging did best (docs/adr/0007).

    Attributes:
        lam: Weight of the perturbed models' loss relative to the clean model's (the paper's lambda).
        n_chips: New perturbed models per step (the paper's N).
        estimator: crossed sends every image through all N perturbed models, as the paper. split sends every image
            through one of them: the same expected gradient with 1 + 1 passes per image instead of 1 + N.
        adversarial_bits: Number of bits to invert per step (the paper's K), namely those that raise the loss most, to
            first order. 0 trains against random faults.
        class_head: Weight of an auxiliary classification loss on the generator's narrowest layer (docs/adr/0010). 0 for
            none, as the paper.
        generator_bits: Word width of the generator's own convolution weights; 0 leaves them in floating point.
        validation_chips: Number of chips per validation.
        validation_images: Maximum number of validation images.
        labels: Labels to train on: those of the data, or the base model's own answers without faults (model), which
            need no labelled images.
        images: Number of training images to use (0: all). They are also the validation images.
    """

    lam: float = 5.0
    n_chips: int = 10
    estimator: Estimator = "split"
    adversarial_bits: int = 0
    class_head: float = 0.0
    epochs: int = 10
    batch: int = 128
    lr: float = 1e-3
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"
    average: float = 0.98
    generator_bits: int = 8
    validation_chips: int = 4
    validation_images: int = 2000
    labels: Labels = "data"
    images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in (("lam", self.lam), ("class_head", self.class_head)):
            require(weight >= 0 and math.isfinite(weight), f"{name} must be at least 0: got {name}={weight}.")
        self._at_least(1, "n_chips", "validation_chips", "validation_images")
        self._at_least(0, "adversarial_bits", "images")
        require(self.images != 1, "images must be 0 or at least 2, for BatchNorm to have a spread: got images=1.")
        self._word_width("generator_bits")
        for kind, value, legal in (("estimator", self.estimator, Estimator), ("labels", self.labels, Labels)):
            if value not in get_args(legal):
                raise unknown_name(kind, value, get_args(legal))

    def to_config(self) -> dict[str, Any]:
        """Return the configuration as JSON; see `QatConfig.to_config`."""
        made = super().to_config()
        unused = [name for name in ("labels", "images") if made[name] == getattr(EopmConfig, name)]
        return {name: value for name, value in made.items() if name not in unused}

    def macs(self, train_images: int, base: float, generator: float) -> float:
        """Return the approximate number of multiplications of the training, from those of one image per network."""
        passes = 1 + (self.n_chips if self.estimator == "crossed" else 1) + (self.adversarial_bits > 0)
        return self.images_seen(train_images) * (3 * generator + 2 * passes * base)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Options to fit a NeuralFuse to a black-box model.

    Attributes:
        queries: Total number of images sent to the model, to learn from and to judge the result by.
        judged: Maximum number of validation images that judge the result against the original module.
        step_images: Images per comparison of two modules.
        directions: Pairs of modules compared per step.
        sigma: Standard deviation of the weight changes, as a share of the mean magnitude in each tensor.
        lr: Learning rate of Adam, in the same unit.
        seed: Seed of all randomness.
    """

    queries: int = 20_000
    judged: int = 500
    step_images: int = 50
    directions: int = 4
    sigma: float = 0.05
    lr: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("judged", "step_images", "directions"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1: got {name}={value}.")
        require(self.seed >= 0, f"seed must be at least 0: got seed={self.seed}.")
        for name in ("sigma", "lr"):
            value = getattr(self, name)
            require(0 < value < 10, f"{name} must be above 0 and below 10: got {name}={value}.")

    def steps(self, judged: int) -> int:
        """Return the number of steps that the queries allow, if ``judged`` images judge the result.

        Raises:
            ConfigError: the queries do not suffice for one step.
        """
        a_step = 2 * self.directions * self.step_images
        least = 2 * judged + a_step
        require(self.queries >= least, f"queries must be at least {least} for one step: got queries={self.queries}.")
        return (self.queries - 2 * judged) // a_step
