"""Weights stored as floating-point words: fp32, fp16, bf16 or fp8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralfuse.errors import ConfigError, unknown_name
from neuralfuse.quant.scheme import Codes

FORMATS: dict[str, tuple[torch.dtype, torch.dtype]] = {
    "fp32": (torch.float32, torch.int32),
    "fp16": (torch.float16, torch.int16),
    "bf16": (torch.bfloat16, torch.int16),
    "fp8-e4m3": (torch.float8_e4m3fn, torch.uint8),
    "fp8-e5m2": (torch.float8_e5m2, torch.uint8),
}


@dataclass(frozen=True, kw_only=True)
class FloatWords:
    """A floating-point format for stored weights. The code of a weight is its bit pattern.

    A fault in the exponent can make a weight huge, infinite or NaN. Such weights are counted, not repaired.

    Args:
        coding: fp32, fp16, bf16, fp8-e4m3 or fp8-e5m2.
    """

    coding: str

    def __post_init__(self) -> None:
        if self.coding not in FORMATS:
            raise unknown_name("floating-point format", str(self.coding), FORMATS)

    @property
    def bits(self) -> int:
        """Bits per word."""
        return self.dtype.itemsize * 8

    @property
    def dtype(self) -> torch.dtype:
        """The integer type that holds the bit patterns."""
        return FORMATS[self.coding][1]

    def encode(self, weight: Tensor, channel_axis: int | None = 0) -> Codes:
        """Return the bit patterns of a weight, rounded to the format. The scale is 1 and the center 0.

        Raises:
            ConfigError: the weight has NaN or values outside the format's range.
        """
        values, kind = weight.detach().float(), FORMATS[self.coding][0]
        rounded = values.to(kind)
        fits = torch.isfinite(rounded.float()) & (values.abs() <= torch.finfo(kind).max)
        if not bool(fits.all()):
            raise ConfigError(
                f"weights must be finite in {self.coding} to be stored: got NaN or a value outside the format's range."
            )
        one = torch.ones((), device=weight.device)
        return Codes(rounded.contiguous().view(self.dtype), one, torch.zeros_like(one))

    def decode(self, codes: Tensor, scale: Tensor, center: Tensor) -> Tensor:
        """Return the float32 values of bit patterns."""
        return codes.contiguous().view(FORMATS[self.coding][0]).float()

    def signed(self, words: Tensor) -> Tensor:
        """Return the words unchanged: every bit pattern is a code."""
        return words

    def zero(self, scale: Tensor, center: Tensor) -> Tensor:
        """Return the code of the value 0, in the shape of ``scale``."""
        return torch.zeros_like(scale, dtype=self.dtype)

    def to_config(self) -> dict[str, Any]:
        """Return the format as JSON."""
        return {"bits": self.bits, "coding": self.coding}
