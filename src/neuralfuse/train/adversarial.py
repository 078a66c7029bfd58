"""Adversarial bit errors: the few bits whose inversion hurts most, in place of random faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from neuralfuse.errors import require
from neuralfuse.faults import Chip, FaultModel, FaultyCells, Layout
from neuralfuse.memory import Deployed, Plain, WeightMemory
from neuralfuse.quant import Scheme


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstBits(FaultModel):
    """Given cells that invert their bits. The seed has no effect.

    Attributes:
        cell: The cells, numbered as in `Layout`: int64 (k,), sorted.
    """

    kind: ClassVar[str] = "worst-bits"
    ber: float = field(default=0.0, init=False)
    cell: Tensor

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the cells."""
        inverted = torch.ones(len(self.cell), dtype=torch.bool, device=device)
        return FaultyCells(self.cell.to(device), inverted, inverted)


def worst_chip(base: Deployed, x: Tensor, labels: Tensor, count: int) -> Chip:
    """Return a chip that inverts the bits that raise the loss most when inverted, each judged alone, to first order.

    Args:
        base: The base model. Its weights must be integer codes.
        x: Inputs of the base model, (N, C, H, W).
        labels: Labels of the inputs, int64 (N,).
        count: Number of bits to invert.
    Raises:
        ConfigError: the memory is not a plain one of integer codes.
    """
    memory = base.memory
    require(
        isinstance(memory.scheme, Scheme) and isinstance(memory.readout, Plain),
        f"adversarial bits must lie in a plain memory of integer codes: got {memory.scheme} and {memory.readout}.",
    )
    count = min(count, memory.layout.cells)
    slopes = weight_gradient(base, x, labels)
    words = torch.arange(len(slopes), device=slopes.device)
    harms, cells = slopes.new_empty(0), words.new_empty(0)
    for bit in range(memory.layout.bits):
        harm = slopes * (_with_bit_inverted(memory, bit) - memory.values)
        worst = harm.topk(min(count, len(harm)))
        harms, cells = torch.cat([harms, worst.values]), torch.cat([cells, worst.indices * memory.layout.bits + bit])
    return Chip(WorstBits(cell=cells[harms.topk(count).indices].sort().values), 0)


def weight_gradient(base: Deployed, x: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean loss with respect to the stored weights, one number per word: (words,)."""
    memory = base.memory
    total = torch.zeros_like(memory.values)
    values = memory.values.clone().requires_grad_()

    def part(rows: slice) -> None:
        logits = functional_call(base.model, memory.parameters(values), (x[rows],))
        loss = F.cross_entropy(logits, labels[rows], reduction="sum") / len(labels)
        total.add_(torch.autograd.grad(loss, values)[0])

    base.in_parts(x, part)
    return total


def _with_bit_inverted(memory: WeightMemory, bit: int) -> Tensor:
    """Return the values of all stored words with this bit inverted in each: float32 (words,)."""
    index = torch.arange(len(memory.codes), device=memory.device)
    layout = memory.layout
    cell = index * layout.bits + bit
    return memory.read(Chip(WorstBits(cell=cell), 0)).values
