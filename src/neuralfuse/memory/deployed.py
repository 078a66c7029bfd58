"""A deployed model: any `nn.Module`, unmodified, running on weights that lie in a memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from neuralfuse.config import Running
from neuralfuse.errors import ConfigError
from neuralfuse.faults import Chip
from neuralfuse.files import fingerprint
from neuralfuse.memory.activations import ActivationMemory, Activations
from neuralfuse.memory.executor import Executor
from neuralfuse.memory.floats import FloatWeights, Patch
from neuralfuse.memory.readout import Plain, Readout
from neuralfuse.memory.weights import Reading, WeightMemory
from neuralfuse.quant import DEFAULT_ADAPTERS, DEFAULT_LAYERS, Adapter, FloatWords, Layers, Scheme
from neuralfuse.ranges import InputRange

Out = TypeVar("Out")


class Perturbed(nn.Module):
    """The perturbed model Mp: a deployed model whose weights are read through one chip.

    It holds only the words that read differently. The module, its biases, its buffers and all other words belong to the
    deployed model.

    Attributes:
        chip: The chip.
        reading: The words that read differently. Where errors are transient: at the latest read.
    """

    def __init__(self, base: Deployed, chip: Chip) -> None:
        super().__init__()
        self.chip = chip
        self._next_read = 0
        self.reading = base.memory.read(chip)
        self._read_at = 0
        self._permanent = chip.faults.permanent is chip.faults
        self._base = (base,)  # in a tuple, so that it is no submodule and its parameters are not listed as ours
        self._activations = None if base.activations is None else ActivationMemory(base.activations, chip)
        self._patch: tuple[Reading, FloatWeights, Patch] | None = None

    @property
    def changed_bits(self) -> float:
        """Share of the stored bits that this chip changes."""
        return self.reading.changed_bits

    def forward(self, x: Tensor, *, read: int | None = None) -> Tensor:
        """Return the perturbed model's output.

        Args:
            x: Inputs of the base model, (N, C, H, W).
            read: Which read of the memory this pass is, from 0. By default every pass is the next read. Only transient
                errors depend on it.
        """
        base = self._base[0]
        if read is None:
            read, self._next_read = self._next_read, self._next_read + 1
        if self._permanent:
            read = 0
        if read != self._read_at:
            self.reading, self._read_at = base.memory.read(self.chip, read=read), read
        return base.run(x, self, self._activations, read)

    def from_first_read(self) -> Callable[[Tensor], Tensor]:
        """Return the model as a function whose passes are the reads 0, 1, 2, ...: transient errors come again."""
        reads = count()
        return lambda x: self(x, read=next(reads))

    def module(self) -> nn.Module:
        """Return an independent copy of the model that holds the weights as this chip had them read last."""
        return self._base[0].holding(self.reading)

    def patch(self, weights: FloatWeights) -> Patch:
        """Return what the latest reading changes in these weights."""
        if self._patch is None or self._patch[0] is not self.reading or self._patch[1] is not weights:
            self._patch = (self.reading, weights, weights.patch(self.reading))
        return self._patch[2]


class _Latest(threading.local):
    """The parameters that a thread ran last, and the reading that they come from."""

    reading: Reading | None = None
    parameters: dict[str, Tensor] = {}  # noqa: RUF012


class Deployed(nn.Module):
    """The base model M0: a model whose weights are stored as integers in a memory without errors.

    The model itself is not subclassed or edited; stored weights take the place of its parameters during each call. It
    is put into eval mode, as deployed models are. Gradients reach the input only. It may run in several threads: each
    has a copy of its structure, and all share its tensors.

    Attributes:
        model: The model as handed over.
        memory: Its stored weights.
        input_range: What its inputs are made of.
        activations: Which activations are stored too; None for none.
        running: How its arithmetic is done.
    """

    def __init__(
        self,
        model: nn.Module,
        memory: WeightMemory,
        input_range: InputRange,
        activations: Activations | None = None,
        running: Running = Running(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.training = False
        self.model = model.eval()
        self.memory = memory
        self.input_range = input_range
        self.activations = activations
        self.running = running
        stored = {one.parameter for one in memory.stored}
        others = [(name, tensor) for name, tensor in model.named_parameters() if name not in stored]
        frozen = {name: tensor.detach().clone() for name, tensor in others}
        self._clean_activations = None if activations is None else ActivationMemory(activations)
        if activations is not None:
            activations.modules(model)
        self._executor = Executor(self.model, memory, frozen, running, self._clean_activations)
        self._latest = _Latest()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the quantized model without bit errors."""
        return self.run(x, None, self._clean_activations)

    def perturbed(self, chip: Chip) -> Perturbed:
        """Return the model as it runs on this chip; any number of them share this one."""
        return Perturbed(self, chip)

    def train(self, mode: bool = True) -> Deployed:
        """Stay in eval mode: a deployed model does not train."""
        self.training = False
        return self

    def run(
        self, x: Tensor, perturbed: Perturbed | None, activations: ActivationMemory | None = None, read: int = 0
    ) -> Tensor:
        """Return the model's output, in the type of ``x``, on clean weights or on what a chip makes of them."""
        weights = self._executor.weights(x)
        parameters = weights.clean if perturbed is None else self.weights_through(perturbed)
        return self._executor.run(x, parameters, activations, read)

    def holding(self, reading: Reading | None = None) -> nn.Module:
        """Return an independent copy of the model, in eval mode, that holds the stored weights, or what was read."""
        values = self.memory.values
        if reading is not None:
            values = values.index_copy(0, reading.index, reading.values)
        own = copy.deepcopy(self.model).eval()
        held = dict(own.named_parameters())
        with torch.no_grad():
            for name, value in self.memory.parameters(values).items():
                held[name].copy_(value)
        return own

    def weights_through(self, perturbed: Perturbed) -> dict[str, Tensor]:
        """Return the stored parameters as a chip has them read; those of the latest one are kept at hand.

        Raises:
            ConfigError: the model has never run, and so has not chosen how to.
        """
        weights, latest = self._executor.weights(), self._latest
        if latest.reading is not perturbed.reading:
            latest.reading, latest.parameters = None, {}  # the image of the one before is free, unless a graph needs it
            latest.parameters, latest.reading = weights.through(perturbed.patch(weights)), perturbed.reading
        return latest.parameters

    def at_once(self, x: Tensor) -> int:
        """Return how many threads may run it at a time on inputs like these: more than one on a CPU only."""
        return self._executor.at_once(x)

    def in_parts(self, x: Tensor, function: Callable[[slice], Out]) -> list[Out]:
        """Return what a function gives for one micro-batch of the rows of ``x`` after the other, as many as fit."""
        return self._executor.in_parts(x, function)

    @cached_property
    def in_full_precision(self) -> Deployed:
        """The same model on the same memory, without autocast."""
        running = replace(self.running, autocast=None)
        return Deployed(self.model, self.memory, self.input_range, self.activations, running)

    def unquantized(self, x: Tensor) -> Tensor:
        """Return the output of the model as handed over, in floating point."""
        return self._executor.as_handed_over(x)

    def to_config(self) -> dict[str, Any]:
        """Return what a result depends on of this model, as JSON."""
        remedies: dict[str, Any] = {}
        if self.memory.readout != Plain():
            readout = self.memory.readout
            remedies["readout"] = {**readout.to_config(), "overhead": readout.overhead(self.memory.layout)}
        if self.activations is not None:
            remedies["activations"] = self.activations.to_config()
        return {
            "scheme": self.memory.scheme.to_config(),
            "layers": self.memory.layers.to_config(),
            "left_out": list(self.memory.layers.left_out(self.model)),
            "input_range": self.input_range.to_config(),
            "fingerprint": fingerprint(*self.model.state_dict().values()),
            **remedies,
            **self.running.to_config(),
        }

    def _apply(self, fn: Any, recurse: bool = True) -> Deployed:
        raise ConfigError("a deployed model cannot be moved or cast: move or cast the model first, then deploy it.")


def check_output(base: Deployed, images: Tensor, classes: int) -> None:
    """Run a model on some images and raise a `ConfigError` unless it gives one logit for each class."""
    base.input_range.check_channels(images.shape[1])
    sizes = f"images of {images.shape[1]} channels and {images.shape[2]}x{images.shape[3]} pixels"
    try:
        with torch.inference_mode():
            shape = tuple(base(base.input_range.from_images(images)).shape)
    except Exception as error:  # the model is the user's, and may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the base model must take {sizes}: {reason}") from error
    if shape != (len(images), classes):
        raise ConfigError(
            f"the base model must give {classes} logits for {sizes}: got shape {shape} for {len(images)}."
        )


def deploy(
    model: nn.Module,
    *,
    scheme: Scheme | FloatWords | None = None,
    layers: Layers = DEFAULT_LAYERS,
    input_range: InputRange | str = "symmetric",
    readout: Readout | None = None,
    activations: Activations | None = None,
    adapters: Sequence[Adapter] = DEFAULT_ADAPTERS,
    running: Running = Running(),  # noqa: B008
) -> Deployed:
    """Store a model's weights in a memory.

    Args:
        model: Any classifier (N, C, H, W) -> (N, classes), on any device; it is put into eval mode.
        scheme: How weights are coded; 8-bit symmetric signed by default. `FloatWords` stores floating-point words.
        layers: Which weights are stored; by default those of every convolution, linear layer, embedding and attention
            projection.
        input_range: What the model's inputs are made of, or its name.
        readout: What the memory makes of faulty words: `Plain` by default, `ZeroFaultyWords`, `Secded`.
        activations: Store these activations in a faulty memory too; none by default.
        adapters: How to reach the words of weights that are quantized already; torchao's int8 weights by default.
        running: How its arithmetic is done; the default is the fastest that does not change what is computed.
    """
    if isinstance(input_range, str):
        input_range = InputRange.named(input_range)
    if isinstance(model, nn.DataParallel):
        model = model.module
    memory = WeightMemory(model, scheme or Scheme(), layers, readout=readout, adapters=adapters)
    return Deployed(model, memory, input_range, activations, running)
