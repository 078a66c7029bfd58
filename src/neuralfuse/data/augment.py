"""Augmentation: random changes to a whole batch of training images at once, on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralfuse.errors import require, unknown_name
from neuralfuse.ranges import InputRange


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to a training image. The default changes nothing.

    Args:
        crop: Zero-padding of the random crop, in pixels.
        flip: Whether to mirror half of the images.
        translate: Largest shift, as a fraction of the image's size.
        scale: (smallest, largest) magnification.
        area: Smallest share of the image's area that a random window covers. The window has an aspect ratio of 3/4 to
            4/3 and is resized to the image's size. 1 turns it off.
    """

    crop: int = 0
    flip: bool = False
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    area: float = 1.0

    def __post_init__(self) -> None:
        require(self.crop >= 0, f"crop must be at least 0: got crop={self.crop}.")
        require(0 <= self.translate < 1, f"translate must be in [0, 1): got translate={self.translate}.")
        require(0 < self.area <= 1, f"area must be in (0, 1]: got area={self.area}.")
        require(0 < self.scale[0] <= self.scale[1], f"scale must be a positive (low, high): got scale={self.scale}.")

    def inputs(self, images: Tensor, input_range: InputRange, draw: torch.Generator) -> Tensor:
        """Return augmented images as model inputs, float32 (N, C, H, W).

        Args:
            images: uint8 pixels, or floats in the model's own input space, (N, C, H, W).
            input_range: The model's input range.
            draw: Random generator on the images' device.
        """
        if images.is_floating_point():
            return images if self == Augment() else input_range.from_pixels(self(input_range.to_pixels(images), draw))
        return input_range.from_pixels(self(images, draw))

    def __call__(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Return augmented float32 pixels in [0, 1], (N, C, H, W). Images are uint8, or float pixels in [0, 1]."""
        pixels = images if images.is_floating_point() else images.float().div_(255.0)
        if self.translate > 0 or self.scale != (1.0, 1.0):
            pixels = self._affine(pixels, draw)
        if self.area < 1:
            pixels = self._window(pixels, draw)
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
        inverse = (1 / zoom)[:, None].expand(-1, 2)
        return _sample(pixels, inverse, shift * inverse)

    def _window(self, pixels: Tensor, draw: torch.Generator) -> Tensor:
        count, device = len(pixels), pixels.device
        area = self.area + (1 - self.area) * torch.rand(count, generator=draw, device=device)
        ratio = (3 / 4) ** (2 * torch.rand(count, generator=draw, device=device) - 1)
        sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp_(max=1)
        place = 2 * torch.rand(count, 2, generator=draw, device=device) - 1
        return _sample(pixels, sides, place * (1 - sides))

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


def _sample(pixels: Tensor, sides: Tensor, center: Tensor) -> Tensor:
    """Return windows resized to the image's size. Half-sides and centers are (N, 2), with the image as [-1, 1]^2."""
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0], theta[:, 1, 1] = sides.unbind(1)
    theta[:, :, 2] = center
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


AUGMENT: dict[str, Augment] = {
    "none": Augment(),
    "shift": Augment(translate=0.08),
    "crop": Augment(crop=4),
    "crop-flip": Augment(crop=4, flip=True),
    "signs": Augment(translate=0.1, scale=(0.9, 1.1)),
    # Source: NeuralFuse's public code, which also mirrors traffic signs.
    "paper-signs": Augment(translate=0.35, scale=(0.65, 1.35), crop=4, flip=True),
    "resized-crop": Augment(area=0.08, flip=True),
}
_AUTO = {
    "digits": "shift",
    "cifar10": "crop-flip",
    "cifar100": "crop-flip",
    "gtsrb": "signs",
    "imagenet10": "resized-crop",
    "folder": "crop-flip",
}
_PAPER = _AUTO | {"digits": "none", "gtsrb": "paper-signs", "folder": "resized-crop"}


def augmentation(name: str, data: str) -> Augment:
    """Return an augmentation by name. ``auto`` and ``paper`` choose one for the data set ``data``.

    Raises:
        UnknownNameError: there is no such augmentation.
    """
    if name == "auto":
        name = _AUTO.get(data, "none")
    if name == "paper":
        name = _PAPER.get(data, "none")
    if name not in AUGMENT:
        raise unknown_name("augmentation", name, ["auto", "paper", *AUGMENT])
    return AUGMENT[name]
