"""Quantization schemes: float weights to stored integer codes, and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from neuralfuse.errors import ConfigError, require, unknown_name

Coding = Literal["signed", "unsigned", "asymmetric"]
Rounding = Literal["nearest", "floor"]
Granularity = Literal["tensor", "channel"]


@dataclass(frozen=True)
class Codes:
    """The stored form of one weight tensor.

    Attributes:
        codes: Integers, the scheme's dtype, the weight's shape.
        scale: Quantization scale, the step between neighbouring codes: float32, () or one per channel, broadcastable to
            the weight. If all weights equal ``center``, the scale is 1 for the signed coding. For the other codings it
            is 0, and every code reads as ``center``.
        center: Value of the code ``scheme.offset``, in the shape of ``scale``. 0 for symmetric schemes.
    """

    codes: Tensor
    scale: Tensor
    center: Tensor


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A b-bit integer code for weights.

    ``signed``      code = round(w / scale) in two's complement, scale = max|w| / (2^(b-1) - 1). The default.
    ``unsigned``    the same code + 2^(b-1) - 1, stored without sign. Values read back are clamped to +-max|w|.
    ``asymmetric``  like ``unsigned``, with [min, max] instead of +-max|w|.

    Args:
        bits: Bits b per word, 2..16.
        coding: One of the three codings above.
        rounding: ``nearest`` (half to even), or ``floor``, which the paper states for its reduced-precision study.
        granularity: One quantization scale per ``tensor`` or per output ``channel``.
    Source:
        NeuralFuse (arXiv 2306.16869) section 4.1 and 4.6, and its public code for the two unsigned variants.
        Difference: a word has exactly b bits in two's complement, sign-extended when read.
    """

    bits: int = 8
    coding: Coding = "signed"
    rounding: Rounding = "nearest"
    granularity: Granularity = "tensor"

    def __post_init__(self) -> None:
        require(
            isinstance(self.bits, int) and 2 <= self.bits <= 16,
            f"bits must be in 2..16: got bits={self.bits}.",
        )
        for kind, value, legal in (
            ("coding", self.coding, Coding),
            ("rounding", self.rounding, Rounding),
            ("granularity", self.granularity, Granularity),
        ):
            if value not in get_args(legal):
                raise unknown_name(kind, str(value), get_args(legal))

    @property
    def limit(self) -> int:
        """The largest clean code of the signed coding, 2^(b-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def offset(self) -> int:
        """The code of the value ``center``: 0 for the signed coding, 2^(b-1) - 1 for the others."""
        return 0 if self.coding == "signed" else self.limit

    @property
    def dtype(self) -> torch.dtype:
        """The smallest integer type that holds the codes. Unsigned codes of more than 8 bits take int32."""
        if self.coding == "signed":
            return torch.int8 if self.bits <= 8 else torch.int16
        return torch.uint8 if self.bits <= 8 else torch.int32

    def encode(self, weight: Tensor, channel_axis: int | None = 0) -> Codes:
        """Return the codes of a weight tensor.

        Args:
            weight: Finite floats, any shape; not modified.
            channel_axis: Axis of the output channels, for one scale per channel. None for one scale per tensor.
        Raises:
            ConfigError: the weight has NaN or infinite values.
        """
        values = weight.detach().float()
        low, high = self._bounds(values, channel_axis)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ConfigError("weights must be finite to be quantized: got NaN or infinity.")
        center = (low + high) / 2 if self.coding == "asymmetric" else torch.zeros_like(high)
        scale = (high - center) / self.limit
        positive = torch.where(scale > 0, scale, torch.ones_like(scale))
        if self.rounding == "floor":  # float64 keeps the largest weight from being floored below its own code
            reach = torch.where(scale > 0, high - center, positive * self.limit).double()
            steps = torch.floor((values - center).double() * self.limit / reach)
        else:
            steps = torch.round((values - center) / positive)
        steps = steps.clamp_(-self.limit, self.limit).add_(self.offset)
        return Codes(steps.to(self.dtype), positive if self.coding == "signed" else scale, center)

    def decode(self, codes: Tensor, scale: Tensor, center: Tensor) -> Tensor:
        """Return the float32 values of codes, clean or faulty. ``scale`` and ``center`` broadcast against ``codes``.

        The unsigned codings clamp to the range of the clean weights, as the reference code does. The signed coding does
        not clamp.
        """
        steps = codes.to(torch.float32)
        if self.coding == "signed":
            return steps.mul_(scale)
        return steps.sub_(self.offset).clamp_(-self.limit, self.limit).mul_(scale).add_(center)

    def signed(self, words: Tensor) -> Tensor:
        """Return words as codes. Two's complement words are sign-extended."""
        if self.coding != "signed" or self.bits == words.dtype.itemsize * 8:
            return words
        sign = 1 << (self.bits - 1)
        return ((words & ((1 << self.bits) - 1)) ^ sign) - sign

    def zero(self, scale: Tensor, center: Tensor) -> Tensor:
        """Return the code whose value is nearest to 0, in the shape of ``scale``."""
        step = torch.where(scale > 0, scale, torch.ones_like(scale))
        return torch.round(-center / step).clamp_(-self.limit, self.limit).add_(self.offset).to(self.dtype)

    def to_config(self) -> dict[str, Any]:
        """Return the scheme as JSON."""
        return asdict(self)

    def _bounds(self, values: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value to encode: one pair per tensor or per channel."""
        if self.coding != "asymmetric":
            values = values.abs()
        if self.granularity == "tensor" or channel_axis is None or values.dim() < 2:
            low, high = values.aminmax()
        else:
            axes = [axis for axis in range(values.dim()) if axis != channel_axis]
            low, high = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
        return (low, high) if self.coding == "asymmetric" else (-high, high)
