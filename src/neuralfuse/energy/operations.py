"""The operations of one pass of a model: matrix products, and the weights that they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["convolution", "transposed convolution", "product", "lookup"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The geometry of a convolution, one number per spatial axis.

    Attributes:
        channels: Input and output channels per group.
        input: Size of the input image.
        output: Size of the output image.
        kernel: Size of the kernel.
        stride: Stride of the kernel.
        padding: Padding on each side.
        dilation: Distance between neighbouring pixels of the kernel.
        images: Number of such images per pass; 1 unless the model reshapes, as for the frames of a video.
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
    """A matrix product, (rows x inner) times (inner x columns), once per group.

    A convolution has output pixels as rows, the kernel's window as inner axis and filters as columns. A transposed
    convolution has input pixels as rows and the filters' pixels as columns. A lookup reads ``rows`` rows of ``columns``
    words, as for an embedding or an elementwise operation; it has no MACs.

    Attributes:
        layer: Name of the module.
        kind: Kind of the operation.
        weight: Name of the parameter or buffer that is the right-hand matrix; None if both are activations, as in
            attention.
        stored: Whether the weight memory stores that weight; otherwise it lies in reliable memory.
        window: Geometry of a convolution.
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
        """Number of multiply-accumulates."""
        return 0 if self.kind == "lookup" else self.groups * self.rows * self.inner * self.columns


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """An operation or weight that is not counted, and why.

    Attributes:
        layer: Name of the stored tensor, or of the module.
        reason: Why it is not counted.
    """

    layer: str
    reason: str


@dataclass
class Trace:
    """The counted operations of one pass over one image.

    Attributes:
        parameters: Number of parameters.
        words: Number of stored weights.
        operations: The operations, in the order in which they ran.
        unknown: Operations and weights that are not counted.
        paper_macs: MACs in the paper's convention; None if a layer has no such convention.
    """

    parameters: int
    words: int
    operations: list[Operation] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    paper_macs: int | None = 0

    @property
    def macs(self) -> int:
        """MACs of all convolutions and matrix products."""
        return sum(operation.macs for operation in self.operations)

    def add_unknown(self, layer: str, reason: str) -> None:
        """Note an operation or weight that is not counted, once."""
        one = Unknown(layer=layer, reason=reason)
        if one not in self.unknown:
            self.unknown.append(one)
