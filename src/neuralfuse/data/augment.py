"""Random changes to a whole batch of training images at once, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralfuse.errors import require


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What may happen to a training image; the default changes nothing.

    Args:
        crop: Zero-padding of the random crop, in pixels.
        flip: Whether to mirror half of the images.
        translate: Largest shift, as a share of the image's size.
        scale: (smallest, largest) magnification.
    """

    crop: int = 0
    flip: bool = False
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        require(self.crop >= 0, f"crop must be at least 0: got crop={self.crop}.")
        require(0 <= self.translate < 1, f"translate must be in [0, 1): got translate={self.translate}.")
        require(0 < self.scale[0] <= self.scale[1], f"scale must be a positive (low, high): got scale={self.scale}.")

    def __call__(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Return changed pixels in [0, 1], float32, for uint8 images (N, C, H, W); ``draw`` lies on their device."""
        pixels = images.float().div_(255.0)
        if self.translate > 0 or self.scale != (1.0, 1.0):
            pixels = self._affine(pixels, draw)
        if self.crop > 0:
            pixels = self._crop(pixels, draw)
        if self.flip:
            mirrored = torch.rand(len(pixels), 1, 1, 1, generator=draw, device=pixels.device) < 0.5
            pixels = torch.where(mirrored, pixels.flip(3), pixels)
        return pixels

    def _affine(self, pixels: Tensor, draw: torch.Generator) -> Tensor:
        count, device = len(pixels), pixels.device
        low, high = self.scale
        zoom = low + (high - low) * torch.rand(count, generator=draw, device=device)
        shift = (2 * torch.rand(count, 2, generator=draw, device=device) - 1) * 2 * self.translate
        theta = torch.zeros(count, 2, 3, device=device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
        theta[:, :, 2] = shift / zoom[:, None]
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _crop(self, pixels: Tensor, draw: torch.Generator) -> Tensor:
        count, channels, height, width = pixels.shape
        device = pixels.device
        top, left = torch.randint(0, 2 * self.crop + 1, (2, count, 1), generator=draw, device=device)
        padded = F.pad(pixels, [self.crop] * 4)
        rows = (top + torch.arange(height, device=device))[:, None, :, None]
        columns = (left + torch.arange(width, device=device))[:, None, None, :]
        image = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        return padded[image, channel, rows, columns]


AUGMENT: dict[str, Augment] = {
    "digits": Augment(translate=0.08),
    "cifar10": Augment(crop=4, flip=True),
    "cifar100": Augment(crop=4, flip=True),
    "gtsrb": Augment(translate=0.1, scale=(0.9, 1.1)),
    "folder": Augment(crop=4, flip=True),
}
