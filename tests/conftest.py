"""Shared pieces of the tests: one thread a process, analytic models, small data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neuralfuse.config import Running
from neuralfuse.data import DataSet, Split
from neuralfuse.data.dataset import holdout

torch.set_num_threads(1)  # two workers share two cores
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


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


@pytest.fixture
def small_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return SmallNet().eval()


def toy_data(count: int = 160, size: int = 8, seed: int = 0) -> DataSet:
    """Two classes that a bright half tells apart: learnable in a few steps."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 1, size, size), generator=draw, dtype=torch.uint8)
    images[labels == 1, :, : size // 2] += 130
    images[labels == 0, :, size // 2 :] += 130
    kept, test = holdout(Split(images, labels), 0.3, "toy", "test")
    train, validation = holdout(kept, 0.2, "toy", "validation")
    return DataSet("toy", ("dark", "bright"), train, validation, test)


@pytest.fixture
def data() -> DataSet:
    return toy_data()


@pytest.fixture(autouse=True)
def _global_randomness_untouched():
    """The library must neither seed nor read the global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"


def child_environment() -> dict[str, str]:
    """Environment for processes that a test starts."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
