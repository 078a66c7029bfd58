"""Images that a gateway transforms."""

from __future__ import annotations

import torch

from neuralfuse.fuse import NeuralFuse


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Inputs on [-1, 1] that are levels of 256."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=draw).float() / 127.5 - 1


def transformed(fuse: NeuralFuse, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return fuse(x)
