"""How the paper counts: MACs as its tool does, and accesses as it gave its networks to a simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _MaxPoolNd

from neuralfuse.energy.arrays import folds
from neuralfuse.energy.operations import Operation, Trace

PAPER_ROWS = 32
"""Height of the paper's array. Source: found to give all of NeuralFuse's Table 6 (arXiv 2306.16869) exactly."""

WEIGHTS_PER_ACCESS = 8
"""8-bit weights in a word of 64 bits. Source: the 512 x 64-bit arrays of its Figure 2; its Table 6 does not say it."""


def in_convention(module: nn.Module) -> bool:
    """Say whether the paper's count of MACs has this layer: convolutions, linear layers, BatchNorm."""
    return isinstance(module, (_ConvNd, nn.Linear, _BatchNorm))


def paper_macs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int | None:
    """Return the MACs of one call of one module, as the paper's Table 7 counts them; it is a reporting convention.

    Biases count one an output, BatchNorm two an input, ReLU and max-pooling one an input, upsampling one an output,
    and a transposed convolution as if its window were slid over the output. Functions outside modules count nothing.

    Returns:
        Their number; None for PyTorch's other layers with parameters, for which we know no convention of the paper.
    Source:
        ptflops 0.6.9 (MIT), the tool of the paper; found to give its Table 7 to the printed digit.
    """
    foreign = type(module).__module__.startswith("torch.nn") and any(True for _ in module.parameters(recurse=False))
    if foreign and not in_convention(module):
        return None
    if not isinstance(output, Tensor):
        return 0
    size, made = (inputs[0].numel() if inputs and isinstance(inputs[0], Tensor) else 0), output.numel()
    biases = made if getattr(module, "bias", None) is not None else 0
    match module:
        case _ConvTransposeNd():
            counted = math.prod(output.shape[2:]) * module.weight.numel() * len(output) + biases
        case _ConvNd():
            counted = made * module.weight[0].numel() + biases
        case nn.Linear():
            counted = made * module.in_features + biases
        case _BatchNorm():
            counted = 2 * size
        case nn.ReLU() | _MaxPoolNd():
            counted = size
        case nn.Upsample():
            counted = made
        case _:
            counted = 0
    return counted


@dataclass(frozen=True, kw_only=True)
class SimulatorLayer:
    """A layer as SCALE-Sim's topology files describe it: an unpadded convolution.

    Attributes:
        layer: Its name.
        size: Of the input, padding included, one number for each spatial axis.
        kernel: Of the window.
        channels: Of the input.
        filters: Channels of the output.
        stride: Of the window.
        groups: How many such convolutions there are.
        images: How many images one pass makes.
    """

    layer: str
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: int
    filters: int
    stride: tuple[int, ...]
    groups: int = 1
    images: int = 1

    @property
    def rows(self) -> int:
        """Output pixels; a window that does not fit a whole number of times is counted once more."""
        sizes = zip(self.size, self.kernel, self.stride, strict=True)
        return self.images * math.prod(folds(size - kernel, stride) + 1 for size, kernel, stride in sizes)

    @property
    def filter_reads(self) -> int:
        """Words read from the memory of the weights, by an output-stationary array of the paper's height."""
        return self.groups * folds(self.rows, PAPER_ROWS) * math.prod(self.kernel) * self.channels * self.filters


def paper_layers(made: Trace) -> list[SimulatorLayer]:
    """Return a pass's layers as the paper gave them to SCALE-Sim.

    A transposed convolution is a convolution of stride 1 over its output with a border of 1, from its output channels
    to its input channels; a 1x1 convolution that ends a network is padded by 1; all else is as it is.

    Source:
        NeuralFuse (arXiv 2306.16869), Table 6. The conventions are not in the paper: they were found by fitting, and
        give all eleven of its totals exactly.
    """
    read = [one for one in made.operations if one.weight is not None]
    return [_simulated(one, border=1 if one is read[-1] and _is_pointwise(one) else 0) for one in read]


def paper_accesses(made: Trace) -> float:
    """Return the total weight memory accesses (T.W.M.A.) in the paper's convention, in words of 64 bits."""
    return sum(layer.filter_reads for layer in paper_layers(made)) / WEIGHTS_PER_ACCESS


def _is_pointwise(operation: Operation) -> bool:
    return operation.window is not None and set(operation.window.kernel) == {1}


def _simulated(operation: Operation, border: int) -> SimulatorLayer:
    window, groups = operation.window, operation.groups
    if window is None:  # a 1x1 convolution over as many pixels as there are rows; a lookup reads each row once
        rows, filters = operation.rows, operation.columns
        rows, filters = (1, rows * filters) if operation.kind == "lookup" else (rows, filters)
        return SimulatorLayer(
            layer=operation.layer, size=(rows, 1), kernel=(1, 1), channels=operation.inner, filters=filters,
            stride=(1, 1), groups=groups,
        )  # fmt: skip
    (incoming, outgoing), stride = window.channels, window.stride
    size = tuple(size + 2 * (pad + border) for size, pad in zip(window.input, window.padding, strict=True))
    if operation.kind == "transposed convolution":
        incoming, outgoing, stride = outgoing, incoming, (1,) * len(window.kernel)
        size = tuple(size + 2 for size in window.output)
    spread = zip(size, window.kernel, window.dilation, strict=True)  # the simulator knows no gaps: take them off
    return SimulatorLayer(
        layer=operation.layer, size=tuple(size - (gap - 1) * (kernel - 1) for size, kernel, gap in spread),
        kernel=window.kernel, channels=incoming, filters=outgoing, stride=stride, groups=groups, images=window.images,
    )  # fmt: skip
