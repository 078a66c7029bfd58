"""UNetL and UNetS. Source: NeuralFuse (arXiv 2306.16869), Table 5."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of four levels. Its output is not bounded; the clip of NeuralFuse does that."""

    def __init__(self, width: int, channels: int) -> None:
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

    def forward(self, x: Tensor) -> Tensor:
        """Return a perturbation of the images' shape (N, C, H, W)."""
        levels: list[Tensor] = []
        for block in self.down:
            x = block(self.pool(x) if levels else x)
            levels.append(x)
        for up, merge, skip in zip(self.up, self.merge, levels[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.last(x)  # type: ignore[no-any-return]


GENERATORS = {"unetl": 16, "unets": 8}
