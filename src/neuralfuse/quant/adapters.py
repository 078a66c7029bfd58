"""Weights that somebody else has quantized: their codes as they are, through three methods."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Adapter(Protocol):
    """How to reach the stored words of one kind of quantized tensor."""

    def matches(self, weight: Tensor) -> bool:
        """Say whether a weight is of this kind."""

    def codes(self, weight: Tensor) -> Tensor:
        """Return its stored words as an integer tensor of any shape: int8, uint8 or int16, all bits of it in use."""

    def with_codes(self, weight: Tensor, codes: Tensor) -> Tensor:
        """Return a weight like this one that holds other words; ``weight`` is not modified."""


class InnerTensors:
    """Tensor subclasses that keep their words in an inner integer tensor and follow PyTorch's flatten protocol.

    That is how torchao stores int8 weights (``qdata``) and packed int4 weights, and what
    `torch.Tensor.__tensor_flatten__` is for.

    Args:
        name: Attribute of the inner tensor.
    """

    def __init__(self, name: str = "qdata") -> None:
        self.name = name

    def matches(self, weight: Tensor) -> bool:
        """Say whether a weight has such an inner tensor."""
        inner = getattr(weight, self.name, None)
        integers = (torch.int8, torch.uint8, torch.int16)
        return hasattr(weight, "__tensor_flatten__") and isinstance(inner, Tensor) and inner.dtype in integers

    def codes(self, weight: Tensor) -> Tensor:
        """Return the inner tensor."""
        inner: Tensor = getattr(weight, self.name)
        return inner

    def with_codes(self, weight: Tensor, codes: Tensor) -> Tensor:
        """Return a tensor of the same kind around other words."""
        kind: Any = type(weight)
        names, context = weight.__tensor_flatten__()  # type: ignore[attr-defined]
        inner = {name: getattr(weight, name) for name in names}
        inner[self.name] = codes
        rebuilt: Tensor = kind.__tensor_unflatten__(inner, context, weight.size(), weight.stride())
        return rebuilt


DEFAULT_ADAPTERS: tuple[Adapter, ...] = (InnerTensors(),)
