"""Adversarial weight perturbation: train at the nearby weights with the highest loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def worst_weights(
    model: nn.Module, weights: Sequence[Tensor], loss: Callable[[], Tensor], gamma: float
) -> Iterator[None]:
    """Move weights along their gradients, to where the loss is higher. Restore them on exit.

    Args:
        model: The model. The extra pass that finds the gradients leaves its buffers (running statistics) unchanged.
        weights: The tensors to move.
        loss: Called without arguments; returns the model's loss, a scalar.
        gamma: Length of each tensor's move, as a share of its Frobenius norm.
    Source:
        Wu, Xia, Wang: Adversarial Weight Perturbation Helps Robust Generalization (NeurIPS 2020), Eqs. 9 and 10 with
        one step. The paper uses adversarial images; here the images are clean.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        kept = [weight.clone() for weight in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            length = gradient.norm()
            if length > 0:
                weight.add_(gradient * (gamma * weight.norm() / length))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
