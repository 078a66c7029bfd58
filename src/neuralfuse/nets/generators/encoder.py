"""ConvL, ConvS, DeConvL and DeConvS: encoders and decoders. Source: NeuralFuse (arXiv 2306.16869), Table 4."""

from __future__ import annotations

from torch import Tensor, nn


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def _deconv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]


class Encoder(nn.Module):
    """A chain of blocks written as the paper's table writes it, closed by a layer to the image's channels and tanh.

    ``C32`` is a 3x3 convolution to 32 channels with BatchNorm and ReLU, ``D32`` a 4x4 transposed one with stride 2,
    ``P`` a 2x2 max-pool, ``U`` a nearest upsampling by 2. ``C=`` and ``D=`` go to the image's channels.
    """

    def __init__(self, recipe: str, last: str, channels: int) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        """Return a perturbation in (-1, 1) of the images' shape (N, C, H, W)."""
        return self.layers(x)  # type: ignore[no-any-return]


GENERATORS = {
    "convl": ("C32 C32 P C64 C64 P C128 C128 P C128 U C128 C64 U C64 C32 U C32", "C"),
    "convs": ("C32 P C64 P C64 P C64 U C32 U C= U", "C"),
    "deconvl": ("C32 C32 P C64 C64 P C128 C128 P C128 D64 C64 D32 C32", "D"),
    "deconvs": ("C32 P C64 P C64 P D64 D32", "D"),
}
