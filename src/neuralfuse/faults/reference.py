"""The chip of the NeuralFuse paper's experiments, bit for bit, as its public code builds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from neuralfuse.errors import require
from neuralfuse.faults.array_faults import ArrayFaults
from neuralfuse.faults.arrays import WORD_LAYOUTS, Array, WordLayout
from neuralfuse.faults.base import FAULT_MODELS
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.layout import Layout

_ARRAY = Array(rows=8192, columns=128, banks=1)


@dataclass(frozen=True, kw_only=True)
class Reference(ArrayFaults):
    """Stuck-at faults from one map of 8192 x 128 cells. The map is tiled over each layer, from row 0.

    A row holds w = 128 // bits words. Word i of a tensor uses slot (i mod w) of row ((i div w^2) mod 8192). So each row
    serves w groups of w neighbouring weights before the next row is used. Faults therefore repeat often within a layer
    and are shared between layers, which is why accuracies vary so much from chip to chip. The chips of seeds s and
    s + 1 are dependent: the random numbers for the polarities of s are those for the faults of s + 1.

    Source:
        NeuralFuse's public code; the paper (section 4.1) describes the rate only.
    """

    kind: ClassVar[str] = "reference"
    array: Array = _ARRAY
    mapping: WordLayout = WORD_LAYOUTS["reference"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.array == _ARRAY, f"faults 'reference' must lie in one bank of 8192 x 128 cells: got {self.array}.")

    def array_cells(self, banks: int, seed: int, device: torch.device) -> FaultyCells:
        """Return the map's faulty cells."""
        require(0 <= seed < 2**32 - 1, f"seed must be in 0..2^32-2 for faults 'reference': got seed={seed}.")
        shape = self.array.rows, self.array.columns
        faulty = np.flatnonzero(np.random.RandomState(seed).rand(*shape) < self.ber)
        ones = (np.random.RandomState(seed + 1).rand(*shape) < 0.5).ravel()[faulty]
        flips = torch.from_numpy(ones).to(device)
        return FaultyCells(torch.from_numpy(faulty).to(device), torch.zeros_like(flips), flips)

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells; see `FaultModel.cells`."""
        bits = layout.bits
        require(bits <= 8, f"bits must be at most 8 for faults 'reference': got bits={bits}. Use faults 'stuck'.")
        return super().cells(layout, seed, device, read=read)


FAULT_MODELS[Reference.kind] = Reference
