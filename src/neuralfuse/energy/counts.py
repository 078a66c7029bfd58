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


def paper_accesses(made: Trace) -> float:
    """Return the total weight memory accesses (T.W.M.A.) as the paper counts them.

    SCALE-Sim's filter reads on an output-stationary array of 32 rows, in words of 64 bits. An unpadded window that does
    not fit a whole number of times is counted once more; a transposed convolution is a convolution of stride 1 over its
    output with a border of 1; a 1x1 convolution that ends a network is padded by 1.

    Source:
        NeuralFuse (arXiv 2306.16869), Table 6. The conventions are not in the paper: they were found by fitting, and
        give all eleven of its totals exactly.
    """
    operations = [operation for operation in made.operations if operation.weight is not None]
    if operations and operations[-1].window is not None and set(operations[-1].window.kernel) == {1}:
        operations[-1] = _padded(operations[-1])
    return sum(map(_filter_reads, operations)) / WEIGHTS_PER_ACCESS


def _padded(last: Operation) -> Operation:
    window = last.window
    assert window is not None  # noqa: S101
    return replace(last, window=replace(window, padding=tuple(one + 1 for one in window.padding)))


def _filter_reads(operation: Operation) -> int:
    if operation.kind == "lookup":
        return operation.rows * operation.columns
    rows, inner, columns = operation.rows, operation.inner, operation.columns
    window = operation.window
    if window is not None and operation.kind == "convolution":
        sizes = zip(window.input, window.kernel, window.stride, window.padding, strict=True)
        rows = math.prod(folds(size + 2 * pad - kernel, stride) + 1 for size, kernel, stride, pad in sizes)
    elif window is not None:
        incoming, outgoing = window.channels
        rows = math.prod(size + 2 - kernel + 1 for size, kernel in zip(window.output, window.kernel, strict=True))
        inner, columns = outgoing * math.prod(window.kernel), incoming
    return operation.groups * folds(rows, PAPER_ROWS) * inner * columns
