"""A deployed model: any `nn.Module`, unmodified, running on weights that lie in a memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neuralfuse.errors import ConfigError
from neuralfuse.files import fingerprint
from neuralfuse.memory.chip import Chip
from neuralfuse.memory.weights import WeightMemory
from neuralfuse.quant import DEFAULT_LAYERS, Layers, Scheme
from neuralfuse.ranges import InputRange


class Perturbed(nn.Module):
    """The perturbed model Mp: a deployed model whose weights are read through one chip.

    Holds the faulted weights and nothing else; the module, its biases and its buffers are the deployed model's.

    Attributes:
        chip: The chip.
        changed_bits: Share of the stored bits that this chip changes.
    """

    def __init__(self, base: Deployed, chip: Chip) -> None:
        super().__init__()
        reading = base.memory.read(chip)
        self.chip = chip
        self.changed_bits = reading.changed_bits
        self._base = (base,)  # in a tuple, so that it is no submodule and its parameters are not listed as ours
        self._weights = base.weights(base.memory.values.index_copy(0, reading.index, reading.values))

    def forward(self, x: Tensor) -> Tensor:
        """Return the perturbed model's output for inputs of the base model."""
        return self._base[0].run(x, self._weights)


class Deployed(nn.Module):
    """The base model M0: a model whose weights are stored as integers in a memory without errors.

    The model itself is not copied, subclassed or edited; stored weights take the place of its parameters during each
    call. It is put into eval mode, as deployed models are. Gradients reach the input only.

    Attributes:
        model: The model as handed over.
        memory: Its stored weights.
        input_range: What its inputs are made of.
    """

    def __init__(self, model: nn.Module, memory: WeightMemory, input_range: InputRange) -> None:
        super().__init__()
        self.model = model.eval()
        self.memory = memory
        self.input_range = input_range
        stored = {one.parameter for one in memory.stored}
        others = [(name, tensor) for name, tensor in model.named_parameters() if name not in stored]
        self._frozen = {name: tensor.detach().clone() for name, tensor in others}
        self._dtype = memory.stored[0].tensor.dtype
        self._weights = self.weights(memory.values)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the quantized model without bit errors."""
        return self.run(x, self._weights)

    def perturbed(self, chip: Chip) -> Perturbed:
        """Return the model as it runs on this chip; any number of them share this one."""
        return Perturbed(self, chip)

    def train(self, mode: bool = True) -> Deployed:
        """Stay in eval mode: a deployed model does not train."""
        self.training = False
        return self

    def weights(self, values: Tensor) -> dict[str, Tensor]:
        """Return the model's parameters, the stored ones taken from an image of values (float32, (words,))."""
        views = self.memory.split(values)
        own = {one.parameter: views[one.name].to(one.tensor.dtype) for one in self.memory.stored}
        return {**self._frozen, **own}

    def run(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Return the model's output, in the type of ``x``, with these parameters in the place of its own."""
        self.model.eval()
        output: Tensor = functional_call(self.model, weights, (x.to(self._dtype),))
        return output.to(x.dtype)

    def unquantized(self, x: Tensor) -> Tensor:
        """Return the output of the model as handed over, in floating point."""
        return self.run(x, {})

    def to_config(self) -> dict[str, Any]:
        """Return what a result depends on of this model, as JSON."""
        return {
            "scheme": self.memory.scheme.to_config(),
            "layers": self.memory.layers.to_config(),
            "left_out": list(self.memory.layers.left_out(self.model)),
            "input_range": self.input_range.to_config(),
            "fingerprint": fingerprint(*self.model.state_dict().values()),
        }

    def _apply(self, fn: Any, recurse: bool = True) -> Deployed:
        raise ConfigError("a deployed model cannot be moved or cast: move or cast the model first, then deploy it.")


def check_output(base: Deployed, images: Tensor, classes: int) -> None:
    """Run a model on some images (uint8) and raise a `ConfigError` unless it gives one logit for each class."""
    base.input_range.check_channels(images.shape[1])
    sizes = f"images of {images.shape[1]} channels and {images.shape[2]}x{images.shape[3]} pixels"
    try:
        with torch.inference_mode():
            shape = tuple(base(base.input_range.from_bytes(images)).shape)
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
    scheme: Scheme | None = None,
    layers: Layers = DEFAULT_LAYERS,
    input_range: InputRange | str = "symmetric",
) -> Deployed:
    """Quantize a model's weights into a memory.

    Args:
        model: Any classifier (N, C, H, W) -> (N, classes), on any device; it is put into eval mode.
        scheme: How weights are coded; 8-bit symmetric signed by default.
        layers: Which weights are stored; by default those of every convolution, linear layer, embedding and attention
            projection.
        input_range: What the model's inputs are made of, or its name.
    """
    if isinstance(input_range, str):
        input_range = InputRange.named(input_range)
    if isinstance(model, nn.DataParallel):
        model = model.module
    return Deployed(model, WeightMemory(model, scheme or Scheme(), layers), input_range)
