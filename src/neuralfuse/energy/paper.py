"""The paper's conventions: MACs as its tool counts them, accesses as a simulator counts its networks."""

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
"""8-bit weights per 64-bit word. Source: the 512 x 64-bit arrays of its Figure 2; its Table 6 does not state it."""


def in_convention(module: nn.Module) -> bool:
    """Say whether the paper's count of MACs covers this layer: convolutions, linear layers, BatchNorm."""
    return isinstance(module, (_ConvNd, nn.Linear, _BatchNorm))


def paper_macs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int | None:
    """Return the MACs of one call of one module in the convention of the paper's Table 7.

    A bias counts one MAC per output, BatchNorm two per input, ReLU and max-pooling one per input, upsampling one per
    output. A transposed convolution counts as if its kernel moved over the output. Functions outside of modules count
    nothing.

    Returns:
        The number of MACs; None for PyTorch's other layers with parameters, whose convention in the paper is unknown.
    Source:
        ptflops 0.6.9 (MIT), the paper's tool; it gives the paper's Table 7 to the printed digit.
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
    """A layer of a SCALE-Sim topology file: an unpadded convolution.

    Attributes:
        layer: Name of the layer.
        size: Size of the input, padding included, one number per spatial axis.
        kernel: Size of the kernel.
        channels: Channels of the input.
        filters: Channels of the output.
        stride: Stride of the kernel.
        groups: Number of such convolutions.
        images: Number of images per pass.
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
        """Number of output pixels; a partial step at the border counts as a whole one."""
        sizes = zip(self.size, self.kernel, self.stride, strict=True)
        return self.images * math.prod(folds(size - kernel, stride) + 1 for size, kernel, stride in sizes)

    @property
    def filter_reads(self) -> int:
        """Words read from the weight memory by an output-stationary array of the paper's height."""
        return self.groups * folds(self.rows, PAPER_ROWS) * math.prod(self.kernel) * self.channels * self.filters


def paper_layers(made: Trace) -> list[SimulatorLayer]:
    """Return the layers of a pass as the paper gave them to SCALE-Sim.

    A transposed convolution becomes a convolution of stride 1 over its output, with a border of 1, from its output
    channels to its input channels. A 1x1 convolution at the end of a network is padded by 1. All other layers are
    unchanged.

    Source:
        NeuralFuse (arXiv 2306.16869), Table 6. The paper does not state these conventions: they were found by fitting,
        and give all eleven totals exactly.
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
    if window is None:  # a 1x1 convolution with one pixel per row; a lookup reads each row once
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
    spread = zip(size, window.kernel, window.dilation, strict=True)  # the simulator has no dilation: subtract the gaps
    return SimulatorLayer(
        layer=operation.layer, size=tuple(size - (gap - 1) * (kernel - 1) for size, kernel, gap in spread),
        kernel=window.kernel, channels=incoming, filters=outgoing, stride=stride, groups=groups, images=window.images,
    )  # fmt: skip
