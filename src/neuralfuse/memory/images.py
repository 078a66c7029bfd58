"""Images of words and weights, one for each chip in use, in memory that is used again."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralfuse.memory.workers import MOST


class Images:
    """Hands out images of one size, and takes their memory back when nothing refers to them any more.

    An image may be part of a graph that autograd keeps, so only the end of its last reference says that it is free.
    PyTorch's allocator on a GPU works like this by itself; on a CPU a large block would go back to the system each
    time, and getting its pages again costs more than filling them. Here a NumPy array stands behind each image, and its
    finalizer puts the memory back.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.float32]] = []

    def copy_of(self, values: Tensor) -> Tensor:
        """Return a new image with these values, float32 (words,)."""
        if values.device.type != "cpu":
            return values.clone()
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(values.numel(), np.float32)
        owner = memory[:]
        weakref.finalize(owner, self._take_back, memory).atexit = False
        return torch.from_numpy(owner).copy_(values)

    def _take_back(self, memory: NDArray[np.float32]) -> None:
        if len(self._free) < MOST:  # one for each thread; more were needed only by a graph of many
            self._free.append(memory)
