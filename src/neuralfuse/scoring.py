"""Accuracy in percent. This is the only module that compares predictions with labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuralfuse.data import Split
from neuralfuse.ranges import InputRange

BATCH = 500


def accuracy(model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, batch: int = BATCH) -> float:
    """Return the accuracy of a model on inputs (N, C, H, W), in percent."""
    return 100.0 * float(correct(model, inputs, labels, batch).sum()) / len(labels)


def correct(model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor, batch: int = BATCH) -> Tensor:
    """Return whether each input's largest output is at its label: bool (N,).

    An input with a NaN among its outputs, as a chip may cause, counts as wrong.
    """
    right = []
    with torch.inference_mode():
        for x, y in zip(torch.split(inputs, batch), torch.split(labels, batch), strict=True):
            logits = model(x)
            right.append((logits.argmax(1) == y) & ~logits.isnan().any(1))
    return torch.cat(right)


def plain_inputs(split: Split, input_range: InputRange) -> Tensor:
    """Return a split's images as model inputs, float32 (N, C, H, W).

    Raises:
        ConfigError: they have another number of channels than the range, or floats that lie outside of it.
    """
    input_range.check_images(split.images)
    return torch.cat([input_range.from_images(part) for part in torch.split(split.images, BATCH)])


def transform(fuse: Callable[[Tensor], Tensor], inputs: Tensor, batch: int = BATCH) -> Tensor:
    """Return F(x) for all inputs. All chips can share it."""
    with torch.inference_mode():
        return torch.cat([fuse(part) for part in torch.split(inputs, batch)])
