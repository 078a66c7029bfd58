"""Input ranges: the affine map between pixels in [0, 1] and a model's inputs."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from neuralfuse.errors import ConfigError, require, unknown_name

_SLACK = 1e-3  # of a pixel in [0, 1], for rounding


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """The value range of a model's inputs: x = (pixel - mean) / std per channel, for pixels in [0, 1].

    A single number applies to all channels. ``InputRange.named("symmetric")`` is [-1, 1], ``"unit"`` is [0, 1], and
    ``"imagenet"`` is the usual normalization of torchvision and timm models.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        require(
            len(self.mean) == len(self.std) > 0,
            f"mean and std must have one value per channel: got {len(self.mean)} means and {len(self.std)} stds.",
        )
        require(min(self.std) > 0, f"std must be positive: got std={self.std}.")
        require(all(map(math.isfinite, (*self.mean, *self.std))), f"mean and std must be finite: got {self!r}.")

    def __str__(self) -> str:
        """Return the range's name, if it has one."""
        return next((name for name, one in _NAMED.items() if one == self), repr(self))

    @staticmethod
    def named(name: str) -> InputRange:
        """Return the range called ``unit``, ``symmetric`` or ``imagenet``."""
        if name not in _NAMED:
            raise unknown_name("input range", name, _NAMED)
        return _NAMED[name]

    @staticmethod
    def from_config(config: dict[str, Any]) -> InputRange:
        """Return the range that `to_config` described."""
        try:
            return InputRange(mean=tuple(config["mean"]), std=tuple(config["std"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"an input range must have two lists, mean and std: got {config}.") from error

    def to_config(self) -> dict[str, Any]:
        """Return the range as JSON."""
        return {key: list(value) for key, value in asdict(self).items()}

    def check_channels(self, channels: int) -> None:
        """Raise `ConfigError` unless the range fits images with this many channels."""
        require(
            len(self.mean) in (1, channels),
            f"an input range must have 1 or {channels} means for {channels}-channel images: got {len(self.mean)}.",
        )

    def check_images(self, images: Tensor) -> None:
        """Check that images (N, C, H, W) can be inputs of this range; uint8 pixels always can.

        Raises:
            ConfigError: they have another number of channels, or floats lie outside of the range.
        """
        self.check_channels(images.shape[1])
        if not images.is_floating_point():
            return
        channels = torch.stack([images.amin((0, 2, 3)), images.amax((0, 2, 3))]).float()[:, :, None, None]
        low, high = self.to_pixels(channels)[0].min(), self.to_pixels(channels)[1].max()
        require(
            bool(low >= -_SLACK and high <= 1 + _SLACK),
            f"float images must be inputs of the model, whose input range is {self}: as such they hold "
            f"pixels from {low:.3g} to {high:.3g}, not in [0, 1]. Convert them, or declare the model's input_range.",
        )
        if bool(channels[0].min() >= 0) and bool(channels[1].max() <= 1) and max(self.mean) > 0:
            warnings.warn(
                f"all float images lie in [0, 1], but the model's input range is {self}: are they pixels? If so, "
                'convert them, or declare input_range="unit".',
                stacklevel=3,
            )

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Return model inputs for pixels in [0, 1], shape (N, C, H, W)."""
        mean, std = self._tensors(pixels)
        return (pixels - mean) / std

    def from_bytes(self, images: Tensor) -> Tensor:
        """Return model inputs (float32) for uint8 images, shape (N, C, H, W)."""
        return self.from_pixels(images.float().div_(255.0))

    def from_images(self, images: Tensor) -> Tensor:
        """Return model inputs (float32) for images (N, C, H, W): uint8 pixels, or floats, which are inputs already."""
        return images.float() if images.is_floating_point() else self.from_bytes(images)

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """Return pixels in [0, 1] for model inputs, shape (N, C, H, W)."""
        mean, std = self._tensors(inputs)
        return inputs * std + mean

    def to_bytes(self, inputs: Tensor) -> Tensor:
        """Return uint8 images for model inputs, shape (N, C, H, W), rounded to the nearest of 256 levels."""
        return (self.to_pixels(inputs) * 255.0).round_().clamp_(0, 255).to(torch.uint8)

    def affine_to_symmetric(self) -> tuple[Tensor, Tensor]:
        """Return (scale, shift), shape (C, 1, 1) each, such that scale * x + shift lies in [-1, 1]."""
        scale = torch.tensor(self.std, dtype=torch.float64).view(-1, 1, 1) * 2
        shift = torch.tensor(self.mean, dtype=torch.float64).view(-1, 1, 1) * 2 - 1
        return scale.float(), shift.float()

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        def column(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

        return column(self.mean), column(self.std)


_NAMED = {
    "symmetric": InputRange(),
    "unit": InputRange(mean=(0.0,), std=(1.0,)),
    # Source: torchvision.models documentation, "preprocessing"; the same constants in timm.data.
    "imagenet": InputRange(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
