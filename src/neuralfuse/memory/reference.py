"""The chip of the NeuralFuse paper's experiments, bit for bit, as its public code builds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from neuralfuse.errors import require
from neuralfuse.memory.faults import FAULT_MODELS, FaultModel, FaultyCells
from neuralfuse.memory.layout import Layout

ROWS, COLUMNS = 8192, 128


@dataclass(frozen=True, kw_only=True)
class Reference(FaultModel):
    """One map of 8192 x 128 stuck cells, tiled over each layer, every layer starting again at row 0.

    A row holds w = 128 // bits words. Word i of a tensor uses slot (i mod w) of row ((i div w^2) mod 8192), so each
    row serves w groups of w neighbouring weights before the next one is used: faults are strongly repeated within a
    layer and shared between layers, which is why accuracies spread so widely from chip to chip.
    The chips of seeds s and s + 1 are dependent (the polarities of s are the faults of s + 1).

    Source:
        NeuralFuse's public code; the paper (section 4.1) describes the rate only.
    """

    kind: ClassVar[str] = "reference"

    def cells(self, layout: Layout, seed: int, device: torch.device) -> FaultyCells:
        """Return the faulty cells; see `FaultModel.cells`."""
        bits = layout.bits
        require(bits <= 8, f"bits must be at most 8 for faults 'reference': got bits={bits}. Use faults 'stuck'.")
        require(0 <= seed < 2**32 - 1, f"seed must be in 0..2^32-2 for faults 'reference': got seed={seed}.")
        per_row = COLUMNS // bits
        faulty = np.random.RandomState(seed).rand(ROWS, COLUMNS) < self.ber
        stuck_at_1 = np.random.RandomState(seed + 1).rand(ROWS, COLUMNS) < 0.5
        largest = max(region.words for region in layout.regions)
        used_rows = -(-largest // per_row**2)  # of the 8192, or more than once all of them
        row, column = np.nonzero(faulty[:used_rows, : per_row * bits])
        slot, bit = np.divmod(column, bits)

        rounds = np.arange(-(-largest // (ROWS * per_row**2)))
        group = np.arange(per_row)
        word = ((rounds[:, None, None] * ROWS + row) * per_row + group[:, None]) * per_row + slot
        cell = (word * bits + bit).ravel()
        polarity = np.broadcast_to(stuck_at_1[row, column], word.shape).ravel()
        order = np.argsort(cell)
        cell, polarity = cell[order], polarity[order]

        ends = np.searchsorted(cell, [region.words * bits for region in layout.regions])
        cells = [cell[:end] + region.start * bits for end, region in zip(ends, layout.regions, strict=True)]
        flips = torch.from_numpy(np.concatenate([polarity[:end] for end in ends])).to(device)
        return FaultyCells(torch.from_numpy(np.concatenate(cells)).to(device), torch.zeros_like(flips), flips)


FAULT_MODELS["reference"] = Reference
