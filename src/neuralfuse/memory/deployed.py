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
from neuralfuse.errors import ConfigError, require
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
        reading: The words that read differently. With transient errors, those of the latest read.
    """

    def __init__(self, base: Deployed, chip: Chip) -> None:
        super().__init__()
        self.chip = chip
        self._next_read = 0
        self.reading = base.memory.read(chip)
        self._read_at = 0
        self._permanent = chip.faults.permanent is chip.faults
        self._base = (base,)  # in a tuple, so that it is not a submodule and its parameters are not listed
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
        """Return a function that runs the model with reads 0, 1, 2, ..., so that transient errors repeat."""
        reads = count()
        return lambda x: self(x, read=next(reads))

    def module(self) -> nn.Module:
        """Return an independent copy of the model that holds the weights of the latest reading."""
        return self._base[0].holding(self.reading)

    def patch(self, weights: FloatWeights) -> Patch:
        """Return the changes of the latest reading to these weights."""
        if self._patch is None or self._patch[0] is not self.reading or self._patch[1] is not weights:
            self._patch = (self.reading, weights, weights.patch(self.reading))
        return self._patch[2]


class _Latest(threading.local):
    """The parameters of a thread's latest run, and the reading that they come from."""

    reading: Reading | None = None
    parameters: dict[str, Tensor] = {}  # noqa: RUF012


class Deployed(nn.Module):
    """The base model M0: a model whose weights are stored as integers in a memory without errors.

    The model itself is not subclassed or edited. Stored weights replace its parameters during each call. The model is
    put into eval mode. Gradients reach the input only. Several threads may run the model: each has a copy of its
    structure, and all share its tensors.

    Attributes:
        model: The original model.
        memory: The memory with its stored weights.
        input_range: The value range of its inputs.
        activations: The activations that are stored too; None for none.
        running: How the model computes.
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
        """Return the model as it runs on this chip. All perturbed models share this one's tensors."""
        if not isinstance(chip, Chip):
            raise ConfigError(f"a chip must be given, e.g. Chip(Stuck(ber=0.01), seed=7): got {chip!r:.80}.")
        return Perturbed(self, chip)

    def train(self, mode: bool = True) -> Deployed:
        """Stay in eval mode, because a deployed model cannot be trained."""
        self.training = False
        return self

    def run(
        self, x: Tensor, perturbed: Perturbed | None, activations: ActivationMemory | None = None, read: int = 0
    ) -> Tensor:
        """Return the model's output, in the type of ``x``, on clean weights or through a perturbed model's chip."""
        weights = self._executor.weights(x)
        parameters = weights.clean if perturbed is None else self.weights_through(perturbed)
        return self._executor.run(x, parameters, activations, read)

    def holding(self, reading: Reading | None = None) -> nn.Module:
        """Return an independent copy of the model in eval mode, with the stored weights or those of a reading."""
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
        """Return the parameters as a perturbed model reads them. Those of the latest one are cached.

        Raises:
            ConfigError: the model has never run, so that it has not chosen yet how to run.
        """
        weights, latest = self._executor.weights(), self._latest
        if latest.reading is not perturbed.reading:
            latest.reading, latest.parameters = None, {}  # frees the previous weights, unless a graph needs them
            latest.parameters, latest.reading = weights.through(perturbed.patch(weights)), perturbed.reading
        return latest.parameters

    def at_once(self, x: Tensor) -> int:
        """Return the number of threads that may run the model in parallel on such inputs. On a GPU, this is 1."""
        return self._executor.at_once(x)

    def in_parts(self, x: Tensor, function: Callable[[slice], Out]) -> list[Out]:
        """Call a function with the rows of one micro-batch of ``x`` after the other; return its results."""
        return self._executor.in_parts(x, function)

    @cached_property
    def in_full_precision(self) -> Deployed:
        """This model on the same memory, without autocast."""
        running = replace(self.running, autocast=None)
        return Deployed(self.model, self.memory, self.input_range, self.activations, running)

    def unquantized(self, x: Tensor) -> Tensor:
        """Return the output of the original model, in floating point."""
        return self._executor.as_handed_over(x)

    def to_config(self) -> dict[str, Any]:
        """Return the properties that a result depends on, as JSON."""
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
        raise ConfigError("a deployed model cannot be moved or cast. Move or cast the model first, then deploy it.")


def check_output(base: Deployed, images: Tensor, classes: int, *, at_least: bool = False) -> None:
    """Run a model on some images. Raise a `ConfigError` unless the model returns one logit per class.

    Args:
        base: The model.
        images: The images (N, C, H, W).
        classes: Number of classes.
        at_least: Whether the model may return more logits: only the largest label is known, not the number of classes.
    """
    base.input_range.check_channels(images.shape[1])
    sizes = f"images of {images.shape[1]} channels and {images.shape[2]}x{images.shape[3]} pixels"
    try:
        with torch.inference_mode():
            shape = tuple(base(base.input_range.from_images(images)).shape)
    except Exception as error:  # the user's model may raise any exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the base model must accept {sizes}: {reason}") from error
    fits = len(shape) == 2 and shape[0] == len(images) and (shape[1] == classes or (at_least and shape[1] > classes))
    if at_least and len(shape) == 2 and shape[1] < classes:
        raise ConfigError(
            f"labels must be in 0..{shape[1] - 1}, for {shape[1]} outputs of the model: got {classes - 1}."
        )
    require(fits, f"the base model must return {classes} logits per image for {sizes}: got shape {shape}.")


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
        model: Any classifier (N, C, H, W) -> (N, classes), on any device. It is put into eval mode.
        scheme: The code of the stored weights; 8-bit symmetric signed integers by default. `FloatWords` stores
            floating-point words.
        layers: The layers whose weights are stored; by default every convolution, linear layer, embedding and attention
            projection.
        input_range: The value range of the model's inputs, or its name.
        readout: How the memory handles faulty words: `Plain` (default), `ZeroFaultyWords` or `Secded`.
        activations: Activations that are stored in a faulty memory too; none by default.
        adapters: Access to the words of weights that are already quantized; by default, torchao's int8 weights.
        running: How the model computes; by default, the fastest way that does not change the outputs.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a model must be an nn.Module: got {model!r:.80}.")
    if isinstance(input_range, str):
        input_range = InputRange.named(input_range)
    if isinstance(model, nn.DataParallel):
        model = model.module
    require(
        not any(isinstance(one, Deployed) for one in model.modules()),
        "a model must be deployed once: this one is or contains a deployed model, whose memory would get no faults.",
    )
    memory = WeightMemory(model, scheme or Scheme(), layers, readout=readout, adapters=adapters)
    return Deployed(model, memory, input_range, activations, running)
