"""Buffers for images of weights, one for each chip in use, whose memory is used again."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralfuse.memory.workers import MOST


class BufferPool:
    """Buffers of one size. A buffer's memory is used again once nothing refers to the buffer.

    Autograd may keep a buffer as part of a graph, so only the end of its last reference says that it is free. PyTorch's
    allocator on a GPU works like this by itself. On a CPU a large block would go back to the system each time, and
    getting its pages again costs more than filling them. Here a NumPy array owns each buffer, and its finalizer puts
    the memory back.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.float32]] = []

    def copy_of(self, values: Tensor) -> Tensor:
        """Return a buffer filled with these values, float32 (words,)."""
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
        if len(self._free) < MOST:  # one for each thread; only a graph of many chips needs more
            self._free.append(memory)
