"""Recycled buffers for the weights of chips, one per chip in use."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralfuse.memory.workers import MOST


class BufferPool:
    """A pool of buffers of one size. A buffer's memory is reused once nothing refers to the buffer.

    Autograd may keep a buffer as part of a graph, so a buffer is free only after its last reference is gone. PyTorch's
    allocator on a GPU already works like this. On a CPU, a large block would be returned to the system each time, and
    new pages cost more than filling them. Here a NumPy array owns each buffer, and its finalizer returns the memory to
    the pool.
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
        if len(self._free) < MOST:  # one per thread; only a graph of many chips needs more
            self._free.append(memory)
