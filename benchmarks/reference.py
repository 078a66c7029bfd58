"""The procedures of the NeuralFuse reference, re-done plainly from the paper and its description, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from neuralfuse.quant import DEFAULT_LAYERS

BITS = 8
ROWS, COLUMNS = 8192, 128  # of its fault map
Masks = tuple[Tensor, Tensor]


def fault_masks(ber: float, seed: int) -> Masks:
    """Return the bytes (cells stuck at 0, at 1) of one chip's map, packed bit by bit: uint8 (rows, bytes a row)."""
    faulty = np.random.RandomState(seed).rand(ROWS, COLUMNS) < ber
    ones = np.random.RandomState(seed + 1).rand(ROWS, COLUMNS) >= 0.5
    return _packed(faulty & ones), _packed(faulty & ~ones)


def _packed(cells: np.typing.NDArray[np.bool_]) -> Tensor:
    bits = torch.from_numpy(cells.astype(np.int64)).to(torch.int32)
    packed = torch.zeros(ROWS, COLUMNS // BITS, dtype=torch.uint8)
    for byte in range(COLUMNS // BITS):
        for bit in range(BITS):
            packed[:, byte] += bits[:, byte * BITS + bit] << bit
    return packed


def faulted(codes: Tensor, masks: Masks) -> Tensor:
    """Return codes (int8, any shape) as one chip reads them.

    The map is tiled 16 times along its columns and as often along its rows as if it were not: 16 times what a layer
    takes, which is then cut off.
    """
    width = masks[0].shape[1]
    banks = -(-codes.numel() // (ROWS * width))
    at_0, at_1 = (torch.tile(mask, (banks, width)).view(-1)[: codes.numel()].view(codes.shape) for mask in masks)
    kept = (codes & ~at_0).to(torch.int8)
    return (kept | at_1).to(torch.int8)


class _Stored(torch.autograd.Function):
    """Weights as 8-bit memory gives them back, quantized anew in every pass; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, masks: Masks | None) -> Tensor:
        most = weight.abs().max()
        step = most / 127
        codes = (weight.clamp(-most, most) / step).round().to(torch.int8)
        if masks is None:
            return (codes * step).float()
        values = (faulted(codes, masks) * step).float()
        values.clamp(weight.min(), weight.max())  # which it does not use
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


def stored_call(model: nn.Module, x: Tensor, masks: Masks | None = None) -> Tensor:
    """Run a model on weights that lie in 8-bit memory, faulty or not; the weights get gradients, too."""
    weights = {one.parameter: _Stored.apply(one.tensor, masks) for one in DEFAULT_LAYERS.select(model)}
    output: Tensor = functional_call(model, weights, (x,))
    return output


class ReferenceStep:
    """The reference's training step: for each of N chips, G, the clean model, the perturbed one twice, backward."""

    def __init__(self, model: nn.Module, generator: nn.Module, *, ber: float, chips: int, lam: float = 5.0) -> None:
        self.model, self.generator = model.eval(), generator.train()
        self.ber, self.chips, self.lam = ber, chips, lam
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
        self.draw = np.random.default_rng(0)

    def __call__(self, x: Tensor, labels: Tensor) -> None:
        """Take one step on a mini-batch."""
        sums = [torch.zeros_like(one) for one in self.generator.parameters()]
        for _ in range(self.chips):
            at_0, at_1 = fault_masks(self.ber, int(self.draw.integers(30001)))
            masks = at_0.to(x.device), at_1.to(x.device)
            transformed = torch.clamp(x + stored_call(self.generator, x), -1, 1)
            stored_call(self.model, x, masks).argmax(1)  # for a line of its log
            clean = F.cross_entropy(stored_call(self.model, transformed), labels)
            perturbed = F.cross_entropy(stored_call(self.model, transformed, masks), labels)
            self.optimizer.zero_grad()
            (clean + self.lam * perturbed).backward()  # type: ignore[no-untyped-call]
            for total, one in zip(sums, self.generator.parameters(), strict=True):
                total.add_(one.grad)
        for total, one in zip(sums, self.generator.parameters(), strict=True):
            one.grad = total / self.chips
        self.optimizer.step()
