"""Accuracy of a model over a split, in percent: the one place where predictions are compared with labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuralfuse.data import Split
from neuralfuse.ranges import InputRange

BATCH = 500


def accuracy(model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, batch: int = BATCH) -> float:
    """Return the share of inputs (N, C, H, W) that a model puts into their class, in percent."""
    return 100.0 * float(correct(model, inputs, labels, batch).sum()) / len(labels)


def correct(model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, batch: int = BATCH) -> Tensor:
    """Return, for each input, whether the model's largest output is its label: bool (N,).

    NaN outputs, which a chip may cause, count as wrong.
    """
    hits = []
    with torch.inference_mode():
        for x, y in zip(torch.split(inputs, batch), torch.split(labels, batch), strict=True):
            logits = model(x)
            hits.append((logits.argmax(1) == y) & ~logits.isnan().any(1))
    return torch.cat(hits)


def plain_inputs(split: Split, input_range: InputRange) -> Tensor:
    """Return a split's images as model inputs, float32 (N, C, H, W)."""
    return torch.cat([input_range.from_images(part) for part in torch.split(split.images, BATCH)])


def transform(fuse: Callable[[Tensor], Tensor], inputs: Tensor, batch: int = BATCH) -> Tensor:
    """Return F(x) for all inputs, once; every chip then sees the same ones."""
    with torch.inference_mode():
        return torch.cat([fuse(part) for part in torch.split(inputs, batch)])
