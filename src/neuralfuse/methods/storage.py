"""Protection by how weights are stored: clipped, in protected bits, or with faulty words zeroed. No retraining."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from neuralfuse.errors import require
from neuralfuse.memory import ZeroFaultyWords
from neuralfuse.methods.base import Access, Method, Preparation, Protected, TrainingContext, check_option


@dataclass(frozen=True)
class ClippedQuantization(Method):
    """Each tensor's weights are clipped to a percentile of their magnitude before quantization.

    A code's most significant bit is then worth less, at the price of the few clipped weights.

    Attributes:
        keep: Share of a tensor's weights that are not clipped.
    """

    name: ClassVar[str] = "clip-quantization"
    needs: ClassVar[tuple[Access, ...]] = ("weights",)
    prepares_for: ClassVar[Preparation] = "nothing"
    keep: float = 0.999

    def __post_init__(self) -> None:
        check_option("keep", self.keep, 0, 1)

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        module = copy.deepcopy(protected.model.module)
        with torch.no_grad():
            for stored in protected.deployed.memory.layers.select(module):
                sizes = stored.tensor.abs().flatten()
                limit = sizes.kthvalue(max(1, round(self.keep * len(sizes)))).values
                stored.tensor.clamp_(-limit, limit)
        return protected.holding(module)


@dataclass(frozen=True)
class ProtectedBits(Method):
    """The cells of the most significant bits keep the highest voltage and do not fail.

    Attributes:
        bits: Number of protected bits per word.
    """

    name: ClassVar[str] = "protected-bits"
    needs: ClassVar[tuple[Access, ...]] = ("memory",)
    prepares_for: ClassVar[Preparation] = "nothing"
    bits: int = 1

    def __post_init__(self) -> None:
        check_option("bits", self.bits, 0, 16)

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        width = protected.deployed.memory.layout.bits
        require(0 <= self.bits <= width, f"protected bits must be in 0..{width}: got {self.bits}.")
        return replace(protected, hardened=max(self.bits, protected.hardened))


@dataclass(frozen=True)
class ZeroedWords(Method):
    """A word reads as zero if a test of the chip found a faulty cell in it."""

    name: ClassVar[str] = "zero-faulty-words"
    needs: ClassVar[tuple[Access, ...]] = ("memory", "fault map")
    prepares_for: ClassVar[Preparation] = "nothing"

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        return protected.holding(protected.model.module, readout=ZeroFaultyWords())
