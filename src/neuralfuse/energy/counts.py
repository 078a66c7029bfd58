"""Accesses, MACs and parameters of a model: exact counts, and counts in the paper's conventions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import nn

from neuralfuse.energy.arrays import Accesses, SystolicArray
from neuralfuse.energy.operations import Operation, Trace, Unknown
from neuralfuse.energy.paper import paper_accesses
from neuralfuse.energy.trace import trace
from neuralfuse.errors import require
from neuralfuse.quant import DEFAULT_LAYERS, Layers

GENERATOR_LAYERS = Layers(extra=("*perturbation",))
"""Weights of a generator: the usual layers and the universal perturbation, which is stored like a weight."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of one pass over one image. If there are ``unknown`` layers, every figure is a lower bound.

    Attributes:
        parameters: Number of parameters.
        words: Number of stored weights.
        macs: MACs of all convolutions and matrix products.
        paper_macs: MACs in the paper's convention (its Table 7); None if a layer has no such convention.
        paper_accesses: Total weight memory accesses in the paper's convention (T.W.M.A., its Table 6).
        accesses: Words that the array moves.
        reliable_reads: Part of ``accesses.weight_reads`` for weights that the weight memory does not store. They lie in
            reliable memory, at the nominal voltage.
        unknown: Operations and weights that are not counted.
        operations: The counted operations, in the order of the pass.
    """

    parameters: int
    words: int
    macs: int
    paper_macs: int | None
    paper_accesses: float
    accesses: Accesses
    reliable_reads: int = 0
    unknown: tuple[Unknown, ...] = ()
    operations: tuple[Operation, ...] = field(default=(), repr=False)

    @staticmethod
    def none() -> Counts:
        """Return counts of zero."""
        return Counts(parameters=0, words=0, macs=0, paper_macs=0, paper_accesses=0, accesses=Accesses())

    def to_config(self) -> dict[str, Any]:
        """Return the figures as JSON, without the operations."""
        found = asdict(replace(self, operations=()))
        del found["operations"]
        return found | {"unknown": [asdict(one) for one in self.unknown]}

    def layers(self, array: SystolicArray) -> list[dict[str, Any]]:
        """Return each operation with the words that it moves, as JSON."""
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
    """Return the counts of one pass of an image model over one image (channels, H, W).

    Raises:
        ConfigError: the model does not run on such an image, or none of its layers can be counted.
    """
    require(min(channels, *image_size) >= 1, f"an image must have at least one pixel: got {channels}x{image_size}.")
    tensor = next((one for one in model.parameters()), torch.zeros(0))
    image = torch.zeros(1, channels, *image_size, device=tensor.device, dtype=tensor.dtype)
    return counts_of(trace(model, image, layers), array or SystolicArray())


def counts_of(made: Trace, array: SystolicArray) -> Counts:
    """Return the counts of one traced pass."""
    return Counts(
        parameters=made.parameters,
        words=made.words,
        macs=made.macs,
        paper_macs=made.paper_macs,
        paper_accesses=paper_accesses(made),
        accesses=reduce(add, map(array.accesses, made.operations), Accesses()),
        reliable_reads=sum(array.accesses(one).weight_reads for one in made.operations if not one.stored),
        unknown=tuple(made.unknown),
        operations=tuple(made.operations),
    )
