"""The base class of fault models whose faults have a place in rows and columns."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from neuralfuse.errors import ConfigError
from neuralfuse.faults.arrays import Array, WordLayout
from neuralfuse.faults.base import FaultModel
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.layout import Layout


@dataclass(frozen=True, kw_only=True)
class ArrayFaults(FaultModel):
    """Faults that have a place in an array. Another mapping changes which weights are hit, not the chip.

    Args:
        array: Shape of the memory.
        mapping: Layout of words on the array, or its name: linear, per-layer, row-interleaved, bit-interleaved or
            reference.
    """

    array: Array = Array()  # noqa: RUF009  # frozen
    mapping: WordLayout = WordLayout()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        super().__post_init__()
        array: Any = self.array
        if not isinstance(array, Array):
            try:
                object.__setattr__(self, "array", Array(**array))
            except TypeError as error:
                raise ConfigError(f"an array must have rows, columns and banks: {error}.") from error
        object.__setattr__(self, "mapping", WordLayout.of(self.mapping))

    @abc.abstractmethod
    def array_cells(self, banks: int, seed: int, device: torch.device) -> FaultyCells:
        """Return the faulty cells of the first ``banks`` banks, numbered (bank * rows + row) * columns + column."""

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells; see `FaultModel.cells`."""
        needed = self.mapping.banks(layout, self.array)
        banks = needed if self.array.banks is None else min(needed, self.array.banks)
        return self.mapping.place(layout, self.array, self.array_cells(banks, seed, device))

    def on_array(self, array: Array, mapping: WordLayout) -> Self:
        """Return the same faults in another array."""
        return replace(self, array=array, mapping=mapping)
