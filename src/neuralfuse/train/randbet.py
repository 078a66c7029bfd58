"""Random bit error training (RandBET): the loss on weights that are read through a faulty memory, and its gradient."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call

from neuralfuse.faults import Chip
from neuralfuse.memory import WeightMemory
from neuralfuse.quant import DEFAULT_LAYERS, Layers, Scheme


def perturbed_parameters(
    model: nn.Module, chip: Chip, scheme: Scheme, layers: Layers = DEFAULT_LAYERS
) -> dict[str, Tensor]:
    """Return a model's current weights, quantized and read through a chip, by parameter name.

    The gradient passes as if quantizing, storing and reading were the identity (straight-through estimator).

    Source:
        Stutz, Chandramoorthy, Hein, Schiele: Bit Error Robustness for Energy-Efficient DNN Accelerators (MLSys 2021),
        Algorithm 1.
    """
    memory = WeightMemory(model, scheme, layers, adapters=())
    reading = memory.read(chip)
    values = memory.parameters(memory.values.index_copy(0, reading.index, reading.values))
    weights = {stored.parameter: stored.tensor for stored in memory.stored}
    return {name: value + (weights[name] - weights[name].detach()) for name, value in values.items()}


def perturbed_call(model: nn.Module, x: Tensor, chip: Chip, scheme: Scheme, layers: Layers = DEFAULT_LAYERS) -> Tensor:
    """Run a model on its weights as read through a chip."""
    return functional_call(model, perturbed_parameters(model, chip, scheme, layers), (x,))  # type: ignore[no-any-return]
