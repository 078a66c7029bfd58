"""Reads and writes of a systolic array's memories: closed forms for three dataflows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from neuralfuse.energy.operations import Operation
from neuralfuse.errors import require, unknown_name

Dataflow = Literal["output-stationary", "weight-stationary", "input-stationary"]


@dataclass(frozen=True, kw_only=True)
class Accesses:
    """Words moved between an array and its three memories, per image.

    Attributes:
        weight_reads: Words read from the weight memory.
        input_reads: Words read from the input memory. It holds both matrices of a product of activations.
        output_writes: Words written to the output memory.
        output_reads: Partial sums read back from the output memory for accumulation.
    """

    weight_reads: int = 0
    input_reads: int = 0
    output_writes: int = 0
    output_reads: int = 0

    def __add__(self, other: Accesses) -> Accesses:
        """Return the sum of both."""
        return Accesses(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})


@dataclass(frozen=True, kw_only=True)
class SystolicArray:
    """A grid of multipliers with a weight memory, an input memory and an output memory, and no cache between them.

    The *stationary* operand stays in the grid, and the other operands stream through it. Outputs lie in the grid as
    output pixels x filters, weights as window x filters, inputs as window x output pixels. A matrix larger than the
    grid is cut into folds, and each fold reads the streaming operands again.

    Args:
        rows: Height of the grid.
        columns: Width of the grid.
        dataflow: Which operand is stationary.
    Source:
        SCALE-Sim (Samajdar et al., ISPASS 2020): reads and writes are counted alike. It does not count partial sums
        read back, and its version 2.0.2 counts some outputs twice (docs/energy.md).
    """

    rows: int = 32
    columns: int = 32
    dataflow: Dataflow = "output-stationary"

    def __post_init__(self) -> None:
        size = f"{self.rows}x{self.columns}"
        require(min(self.rows, self.columns) >= 1, f"an array must have at least one row and one column: got {size}.")
        if self.dataflow not in get_args(Dataflow):
            raise unknown_name("dataflow", self.dataflow, get_args(Dataflow))

    def accesses(self, operation: Operation) -> Accesses:
        """Return the words that one operation moves."""
        m, k, n, times = operation.rows, operation.inner, operation.columns, operation.groups
        if operation.kind == "lookup":
            return Accesses(weight_reads=m * n, output_writes=m * n)
        weights, inputs, sums = {
            "output-stationary": (folds(m, self.rows), folds(n, self.columns), 1),
            "weight-stationary": (1, folds(n, self.columns), folds(k, self.rows)),
            "input-stationary": (folds(m, self.columns), 1, folds(k, self.rows)),
        }[self.dataflow]
        right, left = times * weights * k * n, times * inputs * m * k
        return Accesses(
            weight_reads=right if operation.weight is not None else 0,
            input_reads=left if operation.weight is not None else left + right,
            output_writes=times * sums * m * n,
            output_reads=times * (sums - 1) * m * n,
        )


def folds(length: int, size: int) -> int:
    """Return the number of folds of at most ``size`` that cover a length."""
    return -(-length // size)
