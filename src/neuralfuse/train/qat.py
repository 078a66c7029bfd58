"""Quantization-aware training of base models: the forward pass uses the weights that the memory will hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuralfuse.config import QatConfig
from neuralfuse.data import DataSet, augmentation
from neuralfuse.errors import ConfigError, require
from neuralfuse.faults import Chip, FaultModel, fault_model, training_chip
from neuralfuse.memory import deploy
from neuralfuse.quant import DEFAULT_LAYERS, Layers, Scheme, quantized_call
from neuralfuse.ranges import InputRange
from neuralfuse.scoring import accuracy, plain_inputs
from neuralfuse.seeds import generator
from neuralfuse.train.awp import worst_weights
from neuralfuse.train.listeners import Listener
from neuralfuse.train.loop import State, Task, fit
from neuralfuse.train.randbet import perturbed_call

# Bit errors begin once the loss is below this share of the loss of guessing: below 1.75 for ten classes, as published.
_LEARNED = 0.76


class _Qat(Task):
    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        config: QatConfig,
        input_range: InputRange,
        layers: Layers,
        faults: FaultModel | None = None,
    ) -> None:
        self.module = model
        self.data, self.config, self.input_range, self.layers = data, config, input_range, layers
        self.augment = augmentation(config.augment, data.name)
        self.scheme = Scheme(bits=config.bits) if config.bits else None
        self.validation = plain_inputs(data.validation, input_range)
        self.faults = faults
        self.layout = fastest_layout(model, self.validation[:2])

    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, float]:
        draw = generator(self.config.seed, "augment", step, device=images.device)
        x = self.augment.inputs(images, self.input_range, draw).contiguous(memory_format=self.layout)
        self.module.train()

        def loss() -> Tensor:
            logits = quantized_call(self.module, x, self.scheme, self.layers)
            return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

        if self.config.awp:
            with worst_weights(self.module, self._weights(), loss, self.config.awp):
                return {"loss": _add_gradient(loss())}
        losses = {"loss": _add_gradient(loss())}
        if self.faults is not None and losses["loss"] < _LEARNED * math.log(len(self.data.classes)):
            losses["perturbed"] = self._add_perturbed(x, labels, training_chip(self.faults, self.config.seed, step))
        return losses

    def _add_perturbed(self, x: Tensor, labels: Tensor, chip: Chip) -> float:
        """Add the gradient of the loss on a chip. This pass updates the running statistics too."""
        config = self.config
        logits = perturbed_call(self.module, x, chip, Scheme(bits=config.bits), self.layers)
        return _add_gradient(F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing))

    def stepped(self) -> None:
        """Clip the weights, if the configuration has a limit."""
        if self.config.clip:
            with torch.no_grad():
                for weight in self._weights():
                    weight.clamp_(-self.config.clip, self.config.clip)

    def _weights(self) -> list[Tensor]:
        return [stored.tensor for stored in self.layers.select(self.module)]

    def validate(self) -> dict[str, float]:
        deployed: nn.Module = self.module.eval()
        if self.scheme:
            deployed = deploy(self.module, scheme=self.scheme, layers=self.layers)
        return {"score": accuracy(deployed, self.validation, self.data.validation.labels)}

    def identity(self) -> dict[str, Any]:
        return {
            "task": "qat",
            **self.config.to_config(),
            **error_config(self.faults),
            "data": self.data.to_config(),
            "input_range": self.input_range.to_config(),
            "layers": self.layers.to_config(),
        }


def fastest_layout(model: nn.Module, sample: Tensor) -> torch.memory_format:
    """Return the fastest memory layout of images for training: channels last on a CPU, if the model allows it.

    Args:
        model: The model. Only its training or eval mode changes.
        sample: A few inputs of the model, (N, C, H, W).
    """
    if sample.device.type != "cpu":
        return torch.contiguous_format
    last = sample.contiguous(memory_format=torch.channels_last)
    try:
        with torch.random.fork_rng(devices=[]):
            copy.deepcopy(model).train()(last).sum().backward()
        with torch.no_grad():
            model.eval()
            wanted, got = model(sample), model(last)
        same = torch.allclose(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    except Exception:  # the model may refuse a layout with any exception
        return torch.contiguous_format
    return torch.channels_last if same else torch.contiguous_format


def error_config(faults: FaultModel | None) -> dict[str, Any]:
    """Return the bit errors of a base model's training as JSON: rate and name, and all options unless default."""
    if faults is None or faults.cell_rate == 0:
        return {}
    try:
        usual = fault_model(faults.kind, ber=faults.ber).to_config() == faults.to_config()
    except ConfigError:  # this fault model needs more than a name and a rate
        usual = False
    return faults.short_config() | ({} if usual else {"fault_model": faults.to_config()})


def _add_gradient(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def train_base(
    model: nn.Module,
    data: DataSet,
    config: QatConfig | None = None,
    *,
    faults: FaultModel | None = None,
    input_range: InputRange | str = "symmetric",
    layers: Layers = DEFAULT_LAYERS,
    out: Path | str | None = None,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
) -> State:
    """Train any classifier for quantized weights, in place, on the model's device.

    Args:
        model: The classifier, (N, C, H, W) -> (N, classes) logits.
        data: Training and validation images.
        config: The recipe.
        faults: The fault model to train with (RandBET): every step adds the loss on a fresh chip. None for none.
        input_range: The model's input range, or its name.
        layers: Which weights the memory will store.
        out: Folder for checkpoints.
        resume: Whether to resume from the checkpoint in ``out``.
        listeners: Objects that are notified of steps and validations.
    Returns:
        The run's state. ``best_score`` is the best validation accuracy in percent.
    Raises:
        ConfigError: ``faults`` come without quantization, or together with adversarial weight perturbation.
    """
    config = config or QatConfig()
    if isinstance(input_range, str):
        input_range = InputRange.named(input_range)
    faults = None if faults is None or faults.cell_rate == 0 else faults
    if faults is not None:
        require(config.bits > 0, "bits must be 2 or more to train with bit errors: got bits=0.")
        require(config.awp == 0, f"awp must be 0 to train with bit errors: got awp={config.awp}.")
    task = _Qat(model, data, config, input_range, layers, faults)
    state = fit(task, data.train, config, out=None if out is None else Path(out), resume=resume, listeners=listeners)
    model.eval()
    return state
