"""The universal input perturbation (UIP), a baseline. Source: NeuralFuse (arXiv 2306.16869), section 4.4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralfuse.errors import ShapeError


class UIP(nn.Module):
    """tanh of one trained tensor, the same for every image."""

    def __init__(self, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.perturbation = nn.Parameter(torch.randn(channels, *image_size) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the perturbation, repeated for each of the images (N, C, H, W).

        Raises:
            ShapeError: the images have another size.
        """
        size, own = tuple(x.shape[2:]), tuple(self.perturbation.shape[1:])
        if size != own:
            raise ShapeError(f"images for uip must be {own}: got {size}.")
        return torch.tanh(self.perturbation).expand_as(x)
