"""Small models, and ways to run them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralfuse.config import Running


class SmallNet(nn.Module):
    """One of everything that a memory stores by default, with a bias and a BatchNorm that it must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)
        self.line = nn.Conv1d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.relu(self.norm(self.conv(x)))).flatten(2)
        return self.head(self.line(x).mean(2))


AS_IT_IS = Running(channels_last=False, fold=False)  # the oracle of the fast ways, bit for bit


class Wrapper(nn.Module):
    """A model inside another, as DataParallel and DDP hold it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)
