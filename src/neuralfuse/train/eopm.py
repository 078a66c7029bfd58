"""EOPM: training NeuralFuse on the expectation over perturbed models."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralfuse.config import EopmConfig
from neuralfuse.data import DataSet, Split, augmentation
from neuralfuse.errors import require, unknown_name
from neuralfuse.faults import FaultModel, validation_chips
from neuralfuse.fuse import NeuralFuse, check_same_range
from neuralfuse.memory import Deployed, side_by_side
from neuralfuse.quant import Scheme, has_weights, quantized_call, snap_
from neuralfuse.scoring import BATCH, accuracy, plain_inputs, transform
from neuralfuse.seeds import generator
from neuralfuse.train.adversarial import worst_chip
from neuralfuse.train.classes import WithClassHead
from neuralfuse.train.gradient import Pass, eopm_backward, passes
from neuralfuse.train.listeners import Listener
from neuralfuse.train.loop import State, Task, fit
from neuralfuse.train.ranks import ALONE, Ranks


class _Eopm(Task):
    def __init__(
        self,
        fuse: NeuralFuse,
        bases: Sequence[Deployed],
        data: DataSet,
        config: EopmConfig,
        faults: FaultModel,
        ranks: Ranks = ALONE,
    ) -> None:
        self.fuse = fuse
        self.module: nn.Module = fuse
        if config.class_head:
            self.module = WithClassHead(fuse, classes=len(data.classes), seed=config.seed).to(fuse.scale.device)
        self.bases, self.config, self.ranks = bases, config, ranks
        self.faults = faults
        self.augment = augmentation(config.augment, data.name)
        self.scheme = generator_scheme(fuse, config.generator_bits)
        self.train = training_images(data, config.images)
        validation = self.train if config.images else data.validation
        rows = validation.order(data.name, "validation images")[: config.validation_images]
        validation = validation[rows.sort().values]
        self.inputs = plain_inputs(validation, fuse.input_range).to(fuse.scale.dtype)
        self.labels = validation.labels
        if config.labels == "model":
            with torch.inference_mode():
                self.labels = torch.cat([self._answers(part).argmax(1) for part in torch.split(self.inputs, BATCH)])
        self.description = {
            "generator": fuse.name,
            "fit": fuse.fit,
            **config.to_config(),
            **faults.short_config(),
            "fault_model": faults.to_config(),
            "bases": [base.to_config() for base in bases],
            "data": data.to_config(),
            **({"start": fuse.trained} if fuse.trained else {}),
        }

    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, float]:
        fuse, config = self.fuse, self.config
        draw = generator(config.seed, "augment", step, device=images.device)
        x = self.augment.inputs(images, fuse.input_range, draw).to(fuse.scale.dtype)
        if config.labels == "model":
            with torch.no_grad():
                labels = self._answers(x)
        fuse.train()
        if isinstance(self.module, WithClassHead):
            output, logits = self.module(x, self.scheme)
        else:
            output, logits = quantized_call(fuse, x, self.scheme), None
        leaf = output.detach().requires_grad_()
        perturbed = passes(config, self.faults, len(labels), step)
        if config.adversarial_bits:
            chip = worst_chip(self.bases[0], leaf.detach(), labels, config.adversarial_bits)
            perturbed = [Pass(chip, torch.arange(len(labels)))]
        clean, faulty = eopm_backward(self.bases, leaf, labels, perturbed, lam=config.lam, ranks=self.ranks)
        if logits is None:
            torch.autograd.backward(output, leaf.grad)
            return {"clean": clean, "perturbed": faulty}
        own = F.cross_entropy(logits, labels)
        torch.autograd.backward([output, own], [leaf.grad, torch.full_like(own, config.class_head)])
        return {"clean": clean, "perturbed": faulty, "class_head": float(own.detach())}

    def _answers(self, x: Tensor) -> Tensor:
        """Return the mean class probabilities of the fault-free base models without NeuralFuse, (N, classes)."""
        return torch.stack([base(x).softmax(1) for base in self.bases]).mean(0)

    def validate(self) -> dict[str, float]:
        fuse = quantized_copy(self.fuse, self.scheme)
        transformed, labels = transform(fuse, self.inputs), self.labels
        chips = [None, *validation_chips(self.faults, self.config.validation_chips)]
        found = transformed.new_zeros(len(self.bases), len(chips), dtype=torch.float64)
        own = range(self.ranks.rank, len(chips), self.ranks.size)
        for row, base in zip(found, self.bases, strict=True):

            def score(place: int, base: Deployed = base) -> float:
                chip = chips[place]
                return accuracy(base if chip is None else base.perturbed(chip), transformed, labels)

            for place, value in zip(own, side_by_side(score, own, base.at_once(transformed[:1])), strict=True):
                row[place] = value
        self.ranks.total(found)
        ca, pa = float(found[:, 0].mean()), float(found[:, 1:].mean())
        lam = self.config.lam
        return {"score": (ca + lam * pa) / (1 + lam), "ca_nf": ca, "pa_nf": pa}

    def identity(self) -> dict[str, Any]:
        return {"task": "eopm", **self.description}


def training_images(data: DataSet, count: int) -> Split:
    """Return this many training images, the same in every run. 0 returns all.

    Raises:
        ConfigError: the data set has fewer training images.
    """
    require(count <= len(data.train), f"images must be in 0..{len(data.train)}: got images={count}.")
    return data.train[data.train.order(data.name, "calibration images")[:count]] if count else data.train


def generator_scheme(fuse: NeuralFuse, bits: int) -> Scheme | None:
    """Return how a generator's weights are quantized; None for 0 bits or a generator without weights."""
    return Scheme(bits=bits) if bits and has_weights(fuse) else None


def quantized_copy(fuse: NeuralFuse, scheme: Scheme | None) -> NeuralFuse:
    """Return a copy in eval mode whose generator has quantized weights, as it will be saved."""
    own = copy.deepcopy(fuse).eval()
    if scheme is not None:
        snap_(own, scheme)
    return own


def train_fuse(
    fuse: NeuralFuse,
    bases: Deployed | Sequence[Deployed],
    data: DataSet,
    config: EopmConfig | None = None,
    *,
    faults: FaultModel,
    out: Path | str | None = None,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    ranks: Ranks = ALONE,
    **options: Any,
) -> State:
    """Train NeuralFuse by EOPM, in place, against frozen base models on its own device.

    Args:
        fuse: The NeuralFuse to train, starting from its current weights. It ends with its best validated weights,
            quantized. ``fuse.trained`` then holds the configuration of the training.
        bases: One base model, or several surrogates whose losses are averaged.
        data: Training and validation images.
        config: The training configuration. Instead, fields of `EopmConfig` may be given by name, and must include
            ``seed``: ``train_fuse(fuse, base, data, faults=faults, epochs=12, seed=0)``.
        faults: The fault model to train against.
        out: Folder for checkpoints.
        resume: Whether to resume from the checkpoint in ``out``.
        listeners: Objects that are notified of steps and validations.
        ranks: The processes that train together, each called with the same arguments. Every process runs the
            generator on the whole mini-batch. They share the passes of the base models. Only the first process
            writes files and notifies its listeners.
        options: Fields of `EopmConfig`, in place of ``config``.
    Returns:
        The run's state. ``best_score`` weighs the validation accuracies as the loss weighs its terms:
        (CA(NF) + lam * PA(NF)) / (1 + lam).
    Raises:
        ConfigError: a base model has another input range than the module, options are illegal, or ``seed`` is missing.
    """
    config = _config(config, options)
    bases = [bases] if isinstance(bases, Deployed) else list(bases)
    require(len(bases) > 0, "there must be at least one base model: got none.")
    other = next((one for one in bases if not isinstance(one, Deployed)), None)
    require(other is None, f"a base model must be deployed: got a {type(other).__name__}. Call deploy(model) first.")
    require(
        isinstance(data, DataSet),
        f"data must be a DataSet, whose parts may be DataLoaders: got a {type(data).__name__}.",
    )
    require(isinstance(faults, FaultModel), f"faults must be a fault model, e.g. Stuck(ber=0.01): got {faults!r}.")
    for base in bases:
        check_same_range(fuse, base)
        base.input_range.check_images(data.train.images)
    require(
        not config.adversarial_bits or len(bases) == 1,
        f"adversarial bits must be searched for in one base model: got {len(bases)}.",
    )
    task = _Eopm(fuse, bases, data, config, faults, ranks)
    folder = None if out is None else Path(out)
    state = fit(task, task.train, config, out=folder, resume=resume, listeners=listeners)
    if task.scheme is not None:
        snap_(fuse, task.scheme)
    fuse.trained = {**task.description, "best_step": state.best_step}
    fuse.eval()
    return state


def _config(config: EopmConfig | None, options: Mapping[str, Any]) -> EopmConfig:
    """Return the given configuration, or the one that the given fields make."""
    if config is not None:
        require(isinstance(config, EopmConfig), f"config must be an EopmConfig: got {config!r:.80}.")
        require(
            not options, f"config must come without single options: got {', '.join(options)} too. Set them in config."
        )
        return config
    legal = [one.name for one in fields(EopmConfig)]
    for name in options:
        if name not in legal:
            raise unknown_name("option of EopmConfig", name, legal)
    require("seed" in options, "seed must be given, because training draws at random: pass seed=0, or a config.")
    return EopmConfig(**options)
