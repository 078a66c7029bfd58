"""The six generators of the paper, and the universal input perturbation (UIP) they are compared with.

Source: NeuralFuse (arXiv 2306.16869), Tables 4 and 5; parameter counts as in its Table 7.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neuralfuse.errors import ShapeError, require, unknown_name
from neuralfuse.nets.base import seeded

MULTIPLE = 8  # three halvings


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def _deconv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]


class Encoder(nn.Module):
    """A chain of blocks written as the paper's table writes it, closed by a layer to the image's channels and tanh.

    ``C32`` is a 3x3 convolution to 32 channels with BatchNorm and ReLU, ``D32`` a 4x4 transposed one with stride 2,
    ``P`` a 2x2 max-pool, ``U`` a nearest upsampling by 2; ``C=`` and ``D=`` go to the image's channels.
    """

    def __init__(self, recipe: str, *, channels: int, last: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for block in recipe.split():
            if block == "P":
                self._narrowest = len(layers), width
                layers.append(nn.MaxPool2d(2))
            elif block == "U":
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
            else:
                outputs = channels if block[1:] == "=" else int(block[1:])
                layers += (_conv if block[0] == "C" else _deconv)(width, outputs)
                width = outputs
        final = (_conv if last == "C" else _deconv)(width, channels)[0]
        self.layers = nn.Sequential(*layers, final, nn.BatchNorm2d(channels), nn.Tanh())

    @property
    def narrowest(self) -> tuple[nn.Module, int]:
        """The layer whose output is smallest, an eighth of the image in height and width, and its channels."""
        place, width = self._narrowest
        return self.layers[place], width

    def encode(self, x: Tensor) -> Tensor:
        """Return the narrowest layer's output alone, (N, channels, H / 8, W / 8)."""
        return self.layers[: self._narrowest[0] + 1](x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return a perturbation in (-1, 1) of the images' shape (N, C, H, W)."""
        return self.layers(x)  # type: ignore[no-any-return]


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of four levels; its output is not bounded, the clip of NeuralFuse does that."""

    def __init__(self, width: int, *, channels: int) -> None:
        super().__init__()
        widths = [width << level for level in range(4)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, wide // 2, 2, 2) for wide in widths[:0:-1])
        self.merge = nn.ModuleList(_double(wide, wide // 2) for wide in widths[:0:-1])
        self.last = nn.Conv2d(width, channels, 1)

    @property
    def narrowest(self) -> tuple[nn.Module, int]:
        """The layer whose output is smallest, an eighth of the image in height and width, and its channels."""
        return self.down[-1], self.up[0].in_channels  # type: ignore[return-value]

    def encode(self, x: Tensor) -> Tensor:
        """Return the narrowest layer's output alone, (N, channels, H / 8, W / 8)."""
        return self._levels(x)[-1]

    def _levels(self, x: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for block in self.down:
            x = block(self.pool(x) if levels else x)
            levels.append(x)
        return levels

    def forward(self, x: Tensor) -> Tensor:
        """Return a perturbation of the images' shape (N, C, H, W)."""
        *skips, x = self._levels(x)
        for up, merge, skip in zip(self.up, self.merge, skips[::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.last(x)  # type: ignore[no-any-return]


class UIP(nn.Module):
    """Universal input perturbation: tanh of one trained tensor, the same for every image."""

    def __init__(self, *, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.perturbation = nn.Parameter(torch.randn(channels, *image_size) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return the perturbation, repeated for each of the images (N, C, H, W)."""
        return torch.tanh(self.perturbation).expand_as(x)


_CONV_L = "C32 C32 P C64 C64 P C128 C128 P C128 U C128 C64 U C64 C32 U C32"
_CONV_S = "C32 P C64 P C64 P C64 U C32 U C= U"
_DECONV_L = "C32 C32 P C64 C64 P C128 C128 P C128 D64 C64 D32 C32"
_DECONV_S = "C32 P C64 P C64 P D64 D32"

GENERATORS: dict[str, Callable[[int, tuple[int, int]], nn.Module]] = {
    "convl": lambda channels, size: Encoder(_CONV_L, channels=channels, last="C"),
    "convs": lambda channels, size: Encoder(_CONV_S, channels=channels, last="C"),
    "deconvl": lambda channels, size: Encoder(_DECONV_L, channels=channels, last="D"),
    "deconvs": lambda channels, size: Encoder(_DECONV_S, channels=channels, last="D"),
    "unetl": lambda channels, size: UNet(16, channels=channels),
    "unets": lambda channels, size: UNet(8, channels=channels),
    "uip": lambda channels, size: UIP(channels=channels, image_size=size),
}


def check_size(name: str, height: int, width: int) -> None:
    """Raise a `ShapeError` that names the nearest legal sizes if a generator cannot take this image size."""
    if name != "uip" and (height % MULTIPLE or width % MULTIPLE or min(height, width) < MULTIPLE):
        down = "x".join(str(max(MULTIPLE, size // MULTIPLE * MULTIPLE)) for size in (height, width))
        up = "x".join(str(-(-size // MULTIPLE) * MULTIPLE) for size in (height, width))
        sizes = up if up == down else f"{down} or {up}"
        raise ShapeError(
            f"image height and width for {name} must be multiples of {MULTIPLE}: got {height}x{width}. "
            f'Resize to {sizes}, or use fit="pad" (--fit pad) to pad and crop.'
        )


def generator(name: str, *, channels: int = 3, image_size: tuple[int, int] = (32, 32), seed: int) -> nn.Module:
    """Return an untrained generator.

    Args:
        name: A key of `GENERATORS`.
        channels: Channels of the images.
        image_size: (H, W) of the images; only ``uip`` depends on it.
        seed: Seed of the initial weights.
    Raises:
        UnknownNameError: there is no such generator.
    """
    if name not in GENERATORS:
        raise unknown_name("generator", name, GENERATORS)
    require(channels >= 1, f"channels must be at least 1: got channels={channels}.")
    return seeded(lambda: GENERATORS[name](channels, image_size), seed)
