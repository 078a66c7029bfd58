"""A generator of one's own: trained through the command line, evaluated, exported to ONNX and applied. Run it as it is.

A factory is called with (channels, image_size) and returns a module, from images (N, C, H, W) on [-1, 1] to a
perturbation of the same shape. The attribute ``narrowest`` names the layer that encodes the image, and its channels.
Only ``--class-head`` needs it.
"""

import numpy as np
import torch
from torch import nn

from neuralfuse.cli.main import run


class Patches(nn.Module):
    """Cuts the image into patches of 4 x 4 pixels, mixes them, and joins them again: 3,713 parameters."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, width, 4, 4)
        self.mix = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU())
        self.join = nn.ConvTranspose2d(width, channels, 8, 4, 2)
        self.narrowest = (self.mix, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.join(self.mix(self.cut(x))))


def patches(channels: int, image_size: tuple[int, int]) -> nn.Module:
    return Patches(channels)


if __name__ == "__main__":
    np.save("inputs.npy", np.zeros((2, 1, 8, 8), np.uint8))
    for command in (
        "train-base --base resnet8 --data digits --epochs 12 --batch 64 --out base",
        "train --base base --generator own_generator:patches --ber 0.06 --epochs 30 --lr 4e-3 --out fuse",
        "evaluate fuse --base base --ber 0.06 --chips 20 --out record.json --allow-code",
        "energy base --generator fuse --ber 0.01 --allow-code",
        "export fuse --to onnx --out fuse.onnx --allow-code",
        "apply fuse inputs.npy protected.npy --allow-code",
    ):
        if run(command.split()) != 0:
            raise SystemExit(f"failed: {command}")
