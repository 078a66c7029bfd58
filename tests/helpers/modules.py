"""NeuralFuses that change images a lot, without any training."""

from __future__ import annotations

import torch

from neuralfuse.fuse import NeuralFuse


def strong(name: str = "convs", **options) -> NeuralFuse:
    """A module that changes images a lot: its last convolution is enlarged."""
    fuse = NeuralFuse(name, seed=3, **{"channels": 3, "image_size": (8, 8), **options}).eval()
    with torch.no_grad():
        [*fuse.generator.parameters()][-1].add_(0.4)
    return fuse
