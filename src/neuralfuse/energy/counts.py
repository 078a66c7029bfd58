"""What a model costs before any voltage: accesses, MACs, parameters, by the paper's conventions and plainly."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import nn

from neuralfuse.energy.arrays import Accesses, SystolicArray, folds
from neuralfuse.energy.trace import Operation, Trace, Unknown, trace
from neuralfuse.errors import require
from neuralfuse.quant import DEFAULT_LAYERS, Layers

PAPER_ROWS = 32
"""Height of the paper's array. Source: found to give all of NeuralFuse's Table 6 (arXiv 2306.16869) exactly."""

WEIGHTS_PER_ACCESS = 8
"""8-bit weights in a word of 64 bits. Source: the 512 x 64-bit arrays of its Figure 2; its Table 6 does not say it."""

GENERATOR_LAYERS = Layers(extra=("*perturbation",))
"""Weights of a generator: the usual layers, and the universal perturbation, which is read like a weight."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one pass over one image takes; with ``unknown`` layers, every figure is a lower bound.

    Attributes:
        parameters: Trainable numbers.
        words: Stored weights.
        macs: Multiplications of all convolutions and matrix products.
        paper_macs: MACs in the paper's convention (its Table 7).
        paper_accesses: Total weight memory accesses in the paper's convention (T.W.M.A., its Table 6).
        accesses: Words moved by the array.
        unknown: Layers whose weights are read in a way that is not counted.
        operations: What was counted, in the order of the pass.
    """

    parameters: int
    words: int
    macs: int
    paper_macs: int
    paper_accesses: float
    accesses: Accesses
    unknown: tuple[Unknown, ...] = ()
    operations: tuple[Operation, ...] = field(default=(), repr=False)

    def to_config(self) -> dict[str, Any]:
        """Return the figures as JSON, without the single operations."""
        found = asdict(replace(self, operations=()))
        del found["operations"]
        return found | {"unknown": [asdict(one) for one in self.unknown]}

    def layers(self, array: SystolicArray) -> list[dict[str, Any]]:
        """Return each operation with what it moves, as JSON."""
        return [
            {
                "layer": one.layer, "kind": one.kind, "rows": one.rows, "inner": one.inner, "columns": one.columns,
                "groups": one.groups, "macs": one.macs, **asdict(array.accesses(one)),
            }
            for one in self.operations
        ]  # fmt: skip


def count(
    model: nn.Module,
    *,
    channels: int,
    image_size: tuple[int, int],
    array: SystolicArray | None = None,
    layers: Layers = DEFAULT_LAYERS,
) -> Counts:
    """Count one pass of an image model over one image of (channels, H, W).

    Raises:
        ConfigError: the model does not run on such an image, or nothing of it can be counted.
    """
    require(min(channels, *image_size) >= 1, f"an image must have pixels: got {channels}x{image_size}.")
    tensor = next((one for one in model.parameters()), torch.zeros(0))
    image = torch.zeros(1, channels, *image_size, device=tensor.device, dtype=tensor.dtype)
    return counts_of(trace(model, image, layers), array or SystolicArray())


def counts_of(made: Trace, array: SystolicArray) -> Counts:
    """Return the counts of one traced pass."""
    return Counts(
        parameters=made.parameters,
        words=made.words,
        macs=made.macs,
        paper_macs=made.ptflops,
        paper_accesses=paper_accesses(made),
        accesses=reduce(add, map(array.accesses, made.operations), Accesses()),
        unknown=tuple(made.unknown),
        operations=tuple(made.operations),
    )


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
    """

    layer: str
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    channels: int
    filters: int
    stride: tuple[int, ...]
    groups: int = 1

    @property
    def rows(self) -> int:
        """Output pixels; a window that does not fit a whole number of times is counted once more."""
        sizes = zip(self.size, self.kernel, self.stride, strict=True)
        return math.prod(folds(size - kernel, stride) + 1 for size, kernel, stride in sizes)

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
    stored = [one for one in made.operations if one.weight is not None]
    return [_simulated(one, border=1 if one is stored[-1] and _is_pointwise(one) else 0) for one in stored]


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
    incoming, outgoing = window.channels
    if operation.kind == "transposed convolution":
        return SimulatorLayer(
            layer=operation.layer, size=tuple(size + 2 for size in window.output), kernel=window.kernel,
            channels=outgoing, filters=incoming, stride=(1,) * len(window.kernel), groups=groups,
        )  # fmt: skip
    return SimulatorLayer(
        layer=operation.layer,
        size=tuple(size + 2 * (pad + border) for size, pad in zip(window.input, window.padding, strict=True)),
        kernel=window.kernel, channels=incoming, filters=outgoing, stride=window.stride, groups=groups,
    )  # fmt: skip
