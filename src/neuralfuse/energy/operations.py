"""What one pass of a model does: operations on matrices, and the weights that they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["convolution", "transposed convolution", "product", "lookup"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The geometry of a convolution, one number for each spatial axis.

    Attributes:
        channels: In and out, of one group.
        input: Size of the input.
        output: Size of the output.
        kernel: Size of the window.
        stride: Of the window.
        padding: On each side.
        dilation: Distance between neighbours in the window.
        images: How many such images one pass makes, as for the frames of a film; usually 1.
    """

    channels: tuple[int, int]
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    images: int = 1


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A product of matrices, (rows x inner) times (inner x columns), as often as there are groups.

    For a convolution, rows are output pixels, inner is a window and columns are filters; for a transposed one, rows are
    input pixels and columns are the filters' pixels. A lookup takes ``rows`` rows of ``columns`` words, as an embedding
    or a sum does, and multiplies nothing.

    Attributes:
        layer: The module that did it.
        kind: What it is.
        weight: The parameter or buffer that is the right-hand matrix; None where both hold activations, as in
            attention.
        stored: Whether the memory stores that weight; what it does not store is in a reliable one.
        window: A convolution's geometry.
    """

    layer: str
    kind: Kind
    rows: int
    inner: int
    columns: int
    groups: int = 1
    weight: str | None = None
    stored: bool = True
    window: Window | None = None

    @property
    def macs(self) -> int:
        """Multiplications, each with its addition."""
        return 0 if self.kind == "lookup" else self.groups * self.rows * self.inner * self.columns


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """Something that is not counted, and why.

    Attributes:
        layer: The stored tensor, or the module.
        reason: What is done with it.
    """

    layer: str
    reason: str


@dataclass
class Trace:
    """One pass over one image.

    Attributes:
        parameters: Numbers that training has made or would make.
        words: Numbers that the memory stores.
        operations: In the order in which they ran.
        unknown: What is not among them.
        paper_macs: MACs in the paper's convention; None where a layer is of a kind that it does not have.
    """

    parameters: int
    words: int
    operations: list[Operation] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    paper_macs: int | None = 0

    @property
    def macs(self) -> int:
        """Multiplications of all convolutions and matrix products."""
        return sum(operation.macs for operation in self.operations)

    def miss(self, layer: str, reason: str) -> None:
        """Note once what is not counted."""
        one = Unknown(layer=layer, reason=reason)
        if one not in self.unknown:
            self.unknown.append(one)
