"""The faulty cells of a chip and what each reads, and the fast operations on lists of cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class FaultyCells:
    """The faulty cells of one chip and what each reads: ``bit -> (bit AND keeps) XOR flips``.

    A cell stuck at 0 neither keeps nor flips. A cell stuck at 1 does not keep, and flips the 0 that is left. An
    inverting cell keeps and flips.

    Attributes:
        cell: int64 (k,), sorted, no cell twice; cells as `Layout` counts them.
        keeps: bool (k,).
        flips: bool (k,).
    """

    cell: Tensor
    keeps: Tensor
    flips: Tensor

    def __getitem__(self, which: Tensor | slice) -> FaultyCells:
        """Return some of them, by a mask or a slice."""
        return FaultyCells(self.cell[which], self.keeps[which], self.flips[which])

    @staticmethod
    def of(cell: Tensor, keeps: Tensor, flips: Tensor) -> FaultyCells:
        """Return cells (int64, any order, at most 2^61), sorted. A cell that comes twice must behave alike twice."""
        packed = distinct(cell * 4 + keeps * 2 + flips)
        return FaultyCells(packed >> 2, (packed & 2).bool(), (packed & 1).bool())

    def then(self, later: FaultyCells) -> FaultyCells:
        """Return two faults in sequence: these act on the stored bit, ``later`` on what these read."""
        cell, order = torch.cat([self.cell, later.cell]).sort(stable=True)
        keeps = torch.cat([self.keeps, later.keeps])[order]
        flips = torch.cat([self.flips, later.flips])[order]
        twice = (cell[1:] == cell[:-1]).nonzero().squeeze(1)
        flips[twice] = (flips[twice] & keeps[twice + 1]) ^ flips[twice + 1]
        keeps[twice] &= keeps[twice + 1]
        alone = torch.ones_like(keeps)
        alone[twice + 1] = False
        return FaultyCells(cell, keeps, flips)[alone]


def distinct(values: Tensor) -> Tensor:
    """Return the distinct values of an integer tensor (n,), sorted. ``values`` may be overwritten."""
    if values.device.type != "cpu":
        found: Tensor = torch.unique(values)
        return found
    ordered = values.numpy()
    ordered.sort()  # with vector instructions, unlike torch's
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return torch.from_numpy(ordered.compress(first))


def empty_fast(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialized tensor (count,).

    On a CPU the memory comes from NumPy, which asks the system for large pages. The first write to megabytes of small
    pages would take longer than everything else that is done with them.
    """
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(count, {torch.int64: np.int64, torch.bool: np.bool_}[dtype]))


def nonzero_1d(mask: Tensor) -> Tensor:
    """Return the indices of True in a bool tensor (n,): int64. On a CPU, NumPy is ten times as fast as torch."""
    if mask.device.type != "cpu":
        return mask.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
