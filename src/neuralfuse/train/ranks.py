"""The processes that train one NeuralFuse together, by torch.distributed."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from neuralfuse.errors import ConfigError, LostProcessError


class Ranks:
    """The place of this process among the processes of a training. A process alone is a job of size 1.

    Attributes:
        rank: Index of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @staticmethod
    def from_torchrun(device: torch.device) -> Ranks:
        """Join the processes that torchrun started. Without torchrun, return a job of one process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ALONE
        if not distributed.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if device.index is None else device.index)
            store, rank, size = next(distributed.rendezvous("env://"))  # type: ignore[attr-defined]
            # The store may outlive a restart. The prefix hides the addresses of the processes before the restart.
            store = distributed.PrefixStore(f"start {_restarts()}", store)  # type: ignore[attr-defined]
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
            atexit.register(distributed.destroy_process_group)
        return Ranks(distributed.get_rank(), distributed.get_world_size())

    @staticmethod
    def restarted() -> bool:
        """Say whether torchrun restarted the job, as it does when a process is lost."""
        return _restarts() > 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Replace the values by their sum over all processes, and return them."""
        if self.size > 1:
            self._together(distributed.all_reduce, values)
        return values

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors to all processes, in place.

        Accelerators may add in different orders. Without this, rounding lets the copies drift apart.
        """
        if self.size > 1:
            for tensor in tensors:
                self._together(distributed.broadcast, tensor, src=0)

    def check_equal(self, number: int, device: torch.device, what: str) -> None:
        """Raise a `ConfigError` that names ``what``, unless all processes have the same number."""
        if self.size == 1:
            return
        # Each process fills its own place only, so that the sum lists all numbers.
        own = torch.zeros(self.size, dtype=torch.int64, device=device)
        own[self.rank] = number
        numbers = self.total(own).tolist()
        if len(set(numbers)) > 1:
            raise ConfigError(f"all processes of a job must have the same {what}: got {numbers}.")

    def _together(self, operation: Callable[..., Any], tensor: Tensor, **options: Any) -> None:
        try:
            operation(tensor, **options)
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LostProcessError(
                f"all {self.size} processes of the job must be running: they could not exchange values ({reason}). If "
                "one was lost, start the job again with --resume to continue from its checkpoint."
            ) from error


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


ALONE = Ranks()
