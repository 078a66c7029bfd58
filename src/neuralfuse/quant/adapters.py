"""Adapters: read and replace the stored words of weights that another library has quantized."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Adapter(Protocol):
    """Access to the stored words of one kind of quantized tensor."""

    def matches(self, weight: Tensor) -> bool:
        """Return whether a weight is of this kind."""

    def codes(self, weight: Tensor) -> Tensor:
        """Return the weight's stored words: int8, uint8 or int16, any shape. Every bit of a word is in use."""

    def with_codes(self, weight: Tensor, codes: Tensor) -> Tensor:
        """Return a copy of ``weight`` that holds other words. ``weight`` is not modified."""


class InnerTensors:
    """Adapter for tensor subclasses that hold an inner integer tensor and implement ``__tensor_flatten__``.

    torchao stores int8 weights and packed int4 weights this way, in the inner tensor ``qdata``.

    Args:
        name: Attribute that holds the inner tensor.
    """

    def __init__(self, name: str = "qdata") -> None:
        self.name = name

    def matches(self, weight: Tensor) -> bool:
        """Return whether a weight has such an inner tensor."""
        inner = getattr(weight, self.name, None)
        integers = (torch.int8, torch.uint8, torch.int16)
        return hasattr(weight, "__tensor_flatten__") and isinstance(inner, Tensor) and inner.dtype in integers

    def codes(self, weight: Tensor) -> Tensor:
        """Return the inner tensor."""
        inner: Tensor = getattr(weight, self.name)
        return inner

    def with_codes(self, weight: Tensor, codes: Tensor) -> Tensor:
        """Return a tensor of the same kind that holds other words."""
        kind: Any = type(weight)
        names, context = weight.__tensor_flatten__()  # type: ignore[attr-defined]
        inner = {name: getattr(weight, name) for name in names}
        inner[self.name] = codes
        rebuilt: Tensor = kind.__tensor_unflatten__(inner, context, weight.size(), weight.stride())
        return rebuilt


DEFAULT_ADAPTERS: tuple[Adapter, ...] = (InnerTensors(),)
