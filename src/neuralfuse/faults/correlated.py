"""Correlated faults: weak rows, columns and banks, and clusters of neighbouring cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from neuralfuse.errors import check_ber, require, unknown_name
from neuralfuse.faults.array_faults import ArrayFaults
from neuralfuse.faults.base import FAULT_MODELS
from neuralfuse.faults.behaviour import FaultyCells, distinct
from neuralfuse.faults.cells import sample_hits
from neuralfuse.seeds import bernoulli, derive

Line = Literal["row", "column", "bank"]
_GROUP_CELLS = 1 << 23  # banks are drawn in groups of about this many cells: one draw per small bank would be slow


@dataclass(frozen=True, kw_only=True)
class Lines(ArrayFaults):
    """Weak lines: rows (word lines), columns (bit lines) or banks.

    A line is weak with probability ber / within, and each cell of a weak line fails with probability ``within``. So a
    cell is faulty with probability ``ber``. All faulty cells of a line read the same value, as behind a broken driver.

    Args:
        along: Kind of line: row, column or bank.
        within: Share of a weak line's cells that fail.
        stuck_at_1: Share of the weak lines that read 1; the others read 0.
    Raises:
        ConfigError: ``ber`` is larger than ``within``.
    """

    kind: ClassVar[str] = "lines"
    along: Line = "column"
    within: float = 1.0
    stuck_at_1: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.along not in get_args(Line):
            raise unknown_name("line", str(self.along), get_args(Line))
        object.__setattr__(self, "within", check_ber(self.within, "within"))
        object.__setattr__(self, "stuck_at_1", check_ber(self.stuck_at_1, "stuck_at_1"))
        require(
            self.ber <= self.within and self.within > 0,
            f"ber must be at most within, the share of a weak line's cells that fail: got ber={self.ber:g}, "
            f"within={self.within:g}.",
        )

    def array_cells(self, banks: int, seed: int, device: torch.device) -> FaultyCells:
        """Return the cells of the weak lines."""
        rows, columns = self.array.rows, self.array.columns
        per_bank = {"row": rows, "column": columns, "bank": 1}[self.along]
        rate = self.ber / self.within
        line = _sample_hits_by_group(per_bank, rows * columns, banks, rate, f"{self.along}s", seed, device)
        polarity = bernoulli(derive(seed, "chip", f"{self.along} polarity"), line, self.stuck_at_1)
        if self.along == "column":
            bank, column = line // columns, line % columns
            along = torch.arange(rows, device=device) * columns
            cell = (bank * rows * columns + column)[:, None] + along
        else:
            length = columns if self.along == "row" else rows * columns
            cell = (line * length)[:, None] + torch.arange(length, device=device)
        flips = polarity[:, None].expand(cell.shape).flatten()
        faults = FaultyCells.of(cell.flatten(), torch.zeros_like(flips), flips)
        if self.within == 1:
            return faults
        return faults[bernoulli(derive(seed, "chip", f"within {self.along}s"), faults.cell, self.within)]


@dataclass(frozen=True, kw_only=True)
class Clusters(ArrayFaults):
    """Stuck-at faults in clusters of ``height`` x ``width`` neighbouring cells.

    Each cell is the corner of a cluster with probability 1 - (1 - ber)^(1 / (height * width)). A cell is then covered
    by at least one cluster with probability ``ber`` exactly. Clusters may overlap, and wrap around the edges of a bank.

    Args:
        height: Rows per cluster.
        width: Columns per cluster.
        stuck_at_1: Share of the faulty cells that read 1.
    """

    kind: ClassVar[str] = "clusters"
    height: int = 2
    width: int = 2
    stuck_at_1: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stuck_at_1", check_ber(self.stuck_at_1, "stuck_at_1"))
        for name, most in (("height", self.array.rows), ("width", self.array.columns)):
            value = getattr(self, name)
            legal = isinstance(value, int) and 1 <= value <= most
            require(legal, f"{name} of a cluster must be in 1..{most}: got {name}={value}.")

    def array_cells(self, banks: int, seed: int, device: torch.device) -> FaultyCells:
        """Return the cells that clusters cover."""
        rows, columns = self.array.rows, self.array.columns
        size = rows * columns
        corner_rate = 1.0 if self.ber == 1 else 1 - (1 - self.ber) ** (1 / (self.height * self.width))
        corner = _sample_hits_by_group(size, size, banks, corner_rate, "clusters", seed, device)
        bank, row, column = corner // size, corner // columns % rows, corner % columns
        down = torch.arange(self.height, device=device)[:, None, None]
        right = torch.arange(self.width, device=device)[:, None]
        cell = (bank * rows + (row + down) % rows) * columns + (column + right) % columns
        cell = distinct(cell.flatten())
        flips = bernoulli(derive(seed, "chip", "cluster polarity"), cell, self.stuck_at_1)
        return FaultyCells(cell, torch.zeros_like(flips), flips)


def _sample_hits_by_group(
    per_bank: int, bank_cells: int, banks: int, rate: float, what: str, seed: int, device: torch.device
) -> Tensor:
    """Draw which items of the first ``banks`` banks are hit, ``per_bank`` items per bank: int64, sorted, none twice.

    Each group of banks has its own stream, so a bank's faults do not depend on the number of banks.
    """
    group = max(1, _GROUP_CELLS // bank_cells)
    found = []
    for place in range(-(-banks // group)):
        size = group * per_bank
        found.append(sample_hits(size, rate, derive(seed, "chip", what, place), device) + place * size)
    every = torch.cat(found)
    return every[every < banks * per_bank]


for _model in (Lines, Clusters):
    FAULT_MODELS[_model.kind] = _model
