"""Residual networks: He et al. 2015 for CIFAR and ImageNet sizes, and the pre-activation form of 2016.

Parameters have torchvision's names, so torchvision's weights load into the ImageNet form.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Stem = Literal["cifar", "imagenet"]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. The 3x3 convolution has the stride, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, 4 * width, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A residual network.

    ``stem="cifar"`` is a 3x3 convolution at full size. ``stem="imagenet"`` is a 7x7 convolution and a max-pool, each of
    stride 2. The ReLUs are modules in the blocks and a function in the stem, as in the reference code. This matters
    because the paper's MACs count modules only.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, ...],
        *,
        classes: int,
        channels: int = 3,
        width: int = 64,
        stem: Stem = "cifar",
    ) -> None:
        super().__init__()
        self.stem = stem
        self.conv1 = _conv(channels, width, 3) if stem == "cifar" else _conv(channels, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.depth = len(depths)
        inputs = width
        for stage, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for place in range(depth):
                stage_width = width << stage
                blocks.append(block(inputs, stage_width, 2 if stage > 0 and place == 0 else 1))
                inputs = stage_width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.depth):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU. A shortcut convolution starts after the first ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.shortcut = None if stride == 1 and inputs == width else _conv(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut  # type: ignore[no-any-return]


class PreActResNet(nn.Module):
    """A pre-activation residual network in CIFAR form. Source: He et al., Identity Mappings (ECCV 2016)."""

    def __init__(self, depths: tuple[int, ...], *, classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 3)
        blocks: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(depths):
            for place in range(depth):
                blocks.append(PreActBlock(inputs, width << stage, 2 if stage > 0 and place == 0 else 1))
                inputs = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, channels, H, W)."""
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
