"""Small data."""

from __future__ import annotations

import torch

from neuralfuse.data import DataSet, Split
from neuralfuse.data.dataset import holdout


def toy_data(count: int = 160, size: int = 8, seed: int = 0) -> DataSet:
    """Two classes that a bright half tells apart: learnable in a few steps."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 1, size, size), generator=draw, dtype=torch.uint8)
    images[labels == 1, :, : size // 2] += 130
    images[labels == 0, :, size // 2 :] += 130
    kept, test = holdout(Split(images, labels), 0.3, "toy", "test")
    train, validation = holdout(kept, 0.2, "toy", "validation")
    return DataSet("toy", ("dark", "bright"), train, validation, test)
