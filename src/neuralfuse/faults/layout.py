"""The address space of a memory: one image of b-bit words, with one region per stored tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """The words of one tensor: ``words`` words from word ``start`` of the image on."""

    name: str
    start: int
    words: int


@dataclass(frozen=True)
class Layout:
    """All regions of an image, in order.

    A *cell* is one bit of the image: cell = word * bits + bit. Bit 0 is the least significant.
    """

    regions: tuple[Region, ...]
    bits: int

    @staticmethod
    def of(sizes: Iterable[tuple[str, int]], bits: int) -> Layout:
        """Lay tensors of these names and sizes one after another."""
        regions, start = [], 0
        for name, words in sizes:
            regions.append(Region(name, start, words))
            start += words
        return Layout(tuple(regions), bits)

    @property
    def words(self) -> int:
        """Words in the image."""
        return sum(region.words for region in self.regions)

    @property
    def cells(self) -> int:
        """Bits in the image."""
        return self.words * self.bits
