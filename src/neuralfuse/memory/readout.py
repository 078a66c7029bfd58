"""Readouts: a memory controller passes faulty words on, zeroes known faulty words, or corrects errors (ECC)."""

from __future__ import annotations

import abc
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from neuralfuse.errors import require, unknown_name
from neuralfuse.faults import Chip, FaultyCells, Layout
from neuralfuse.faults.behaviour import distinct, nonzero_1d

Words = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Readout(abc.ABC):
    """How a memory controller stores words, and how it reads faulty ones."""

    kind: ClassVar[str]

    def stored(self, layout: Layout) -> Layout:
        """Return the layout of the data followed by the check words."""
        return layout

    def encode(self, codes: Tensor, layout: Layout) -> Tensor:
        """Return the image as stored: the data (words,), then the check words."""
        return codes

    @abc.abstractmethod
    def overhead(self, layout: Layout) -> float:
        """Return the number of extra bits stored, as a share of the data's bits."""

    @abc.abstractmethod
    def read(self, image: Tensor, layout: Layout, chip: Chip, *, zeros: Tensor | int, read: int) -> Words:
        """Return (index, words): the data words that may read differently, int64 (k,) sorted, and what they read.

        Bits above a word's width have no meaning.

        Args:
            image: The image as stored; not modified.
            layout: Layout of the data.
            chip: The chip that the image is read through.
            zeros: Code of the value 0: one number, or one per word.
            read: Number of earlier reads.
        """

    def to_config(self) -> dict[str, Any]:
        """Return the readout as JSON."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Plain(Readout):
    """Words read as their cells give them."""

    kind: ClassVar[str] = "plain"

    def overhead(self, layout: Layout) -> float:
        """Return 0: no extra bits are stored."""
        return 0.0

    def read(self, image: Tensor, layout: Layout, chip: Chip, *, zeros: Tensor | int, read: int) -> Words:
        """Return the words as the cells give them."""
        faults = chip.faults.cells(layout, chip.seed, image.device, read=read)
        return changed_words(image, changed_cells(image, faults, layout.bits), layout.bits)


@dataclass(frozen=True, kw_only=True)
class ZeroFaultyWords(Readout):
    """Words with known faulty cells read as 0. Transient errors remain.

    A test of the memory finds the faulty cells and marks their words, by one flag bit per word. A marked word reads as
    the code nearest to the value 0. For words of another quantizer (an adapter's), it reads as the integer 0.
    """

    kind: ClassVar[str] = "zero-faulty-words"

    def overhead(self, layout: Layout) -> float:
        """Return the share of one flag bit per word."""
        return 1 / layout.bits

    def read(self, image: Tensor, layout: Layout, chip: Chip, *, zeros: Tensor | int, read: int) -> Words:
        """Return the words, with zeros in place of known faulty words."""
        faults, permanent = chip.faults.cells(layout, chip.seed, image.device, read=read), chip.faults.permanent
        plain = changed_words(image, changed_cells(image, faults, layout.bits), layout.bits)
        if permanent is None:
            return plain
        known = faults if permanent is chip.faults else permanent.cells(layout, chip.seed, image.device)
        faulty = ~known.keeps | known.flips
        return _zeroed(image, *plain, distinct(known.cell[faulty] // layout.bits), zeros)


@dataclass(frozen=True, kw_only=True)
class Secded(Readout):
    """Single error correction, double error detection: an extended Hamming code over blocks of neighbouring words.

    64 data bits take 8 check bits. The check bits follow all data and lie in faulty cells too. One error per block is
    corrected, and two are detected. Three or more may be mistaken for one, and the correction then adds an error. All
    this is computed bit by bit. A tensor's last block is padded with zeros that no memory stores.

    Args:
        data_bits: Data bits per block, a multiple of the word's width.
        detected: What a block with a detected error reads: its words unchanged (``keep``) or zeros (``zero``).
    Source:
        Hamming, Bell System Technical Journal 29 (1950), sections 3 and 4.
    """

    kind: ClassVar[str] = "secded"
    data_bits: int = 64
    detected: Literal["keep", "zero"] = "keep"

    def __post_init__(self) -> None:
        legal = isinstance(self.data_bits, int) and 2 <= self.data_bits <= 4096
        require(legal, f"data_bits must be in 2..4096: got {self.data_bits!r}.")
        if self.detected not in ("keep", "zero"):
            raise unknown_name("reading of detected errors", str(self.detected), ("keep", "zero"))

    @property
    def syndrome_bits(self) -> int:
        """Number r of check bits without the overall parity: the smallest r with 2^r > data bits + r."""
        return next(r for r in range(2, 16) if 1 << r > self.data_bits + r)

    def stored(self, layout: Layout) -> Layout:
        """Return the layout of the data, followed by one region of check words per tensor."""
        per_block = self._check_words(layout.bits)
        checks = [(f"{one.name}.check", self._blocks_of(one.words, layout.bits) * per_block) for one in layout.regions]
        return Layout.of([*((one.name, one.words) for one in layout.regions), *checks], layout.bits)

    def overhead(self, layout: Layout) -> float:
        """Return the number of check words per data word. Check bits are padded to whole words."""
        return self.stored(layout).words / layout.words - 1

    def encode(self, codes: Tensor, layout: Layout) -> Tensor:
        """Return the data, followed by its check words.

        Check bit j < r makes the parity of all places with bit j set even. Check bit r is the overall parity.
        """
        bits, device = layout.bits, codes.device
        places = self._places(device)[:, None] >> torch.arange(self.syndrome_bits, device=device) & 1
        per_block = self._check_words(bits)
        checks = []
        for region in layout.regions:
            words = codes[region.start : region.start + region.words]
            blocks = self._blocks_of(region.words, bits)
            padded = torch.zeros(blocks * self._words(bits), dtype=codes.dtype, device=device)
            padded[: region.words] = words
            for part in torch.split(padded.view(blocks, -1), 1 << 16):
                data = (part.long()[:, :, None] >> torch.arange(bits, device=device) & 1).flatten(1)
                parities = (data.float() @ places.float()).long() % 2
                overall = (data.sum(1) + parities.sum(1)) % 2
                check = torch.cat([parities, overall[:, None]], 1)
                check = torch.nn.functional.pad(check, (0, per_block * bits - check.shape[1]))
                word = (check.view(-1, per_block, bits) << torch.arange(bits, device=device)).sum(2)
                checks.append(word.flatten().to(codes.dtype))
        return torch.cat([codes, *checks])

    def read(self, image: Tensor, layout: Layout, chip: Chip, *, zeros: Tensor | int, read: int) -> Words:
        """Return the words after correction."""
        bits, device = layout.bits, image.device
        faults = chip.faults.cells(self.stored(layout), chip.seed, device, read=read)
        errors = changed_cells(image, faults, bits)
        place, block = self._locate(layout, errors // bits, errors % bits)
        used = place >= 0
        touched, group = torch.unique(block[used], return_inverse=True)
        syndrome = _xor_by_group(place[used], group, len(touched), self.syndrome_bits)
        odd = torch.zeros_like(touched).index_add_(0, group, torch.ones_like(group)) % 2 == 1

        data_bit = torch.full((1 << self.syndrome_bits,), -1, device=device)
        data_bit[self._places(device)] = torch.arange(self.data_bits, device=device)
        data_bit = data_bit[syndrome]
        first, end = self._words_of(layout, touched)
        target = first + data_bit // bits
        fix = odd & (data_bit >= 0) & (target < end)
        toggled = torch.cat([errors[errors < layout.cells], target[fix] * bits + data_bit[fix] % bits])
        left, times = torch.unique(toggled, return_counts=True)
        left = left[times == 1]  # a corrected error is gone, a wrongly "corrected" bit is a new error
        read_out = changed_words(image, left, bits)
        if self.detected == "keep":
            return read_out
        lost = torch.where(odd, syndrome > self.data_bits + self.syndrome_bits, syndrome != 0)
        every = first[lost][:, None] + torch.arange(self._words(bits), device=device)
        return _zeroed(image, *read_out, every[every < end[lost][:, None]], zeros)

    def _words(self, bits: int) -> int:
        require(
            self.data_bits % bits == 0,
            f"data_bits must be a multiple of the word's width, {bits}: got data_bits={self.data_bits}.",
        )
        return self.data_bits // bits

    def _check_words(self, bits: int) -> int:
        return -(-(self.syndrome_bits + 1) // bits)

    def _blocks_of(self, words: int, bits: int) -> int:
        return -(-words // self._words(bits))

    def _places(self, device: torch.device) -> Tensor:
        """Return the place of each data bit in the Hamming code: 3, 5, 6, 7, 9, ... Check bits have powers of two."""
        every = range(3, self.data_bits + self.syndrome_bits + 1)
        return torch.tensor([place for place in every if place & (place - 1)], device=device)

    def _locate(self, layout: Layout, word: Tensor, bit: Tensor) -> tuple[Tensor, Tensor]:
        """Return each stored bit's place in the code and its block. Place 0 is the overall parity, -1 is unused."""
        bits, words, device = layout.bits, self._words(layout.bits), word.device
        starts, _, first_block = self._edges(layout, device)
        data = word < layout.words
        inside = word.clamp(max=layout.words - 1)
        region = torch.bucketize(inside, starts, right=True) - 1
        inner = inside - starts[region]
        data_place = self._places(device)[inner % words * bits + bit]

        per_block = self._check_words(bits)
        check = (word - layout.words).clamp(min=0)
        number = check % per_block * bits + bit
        check_place = torch.where(number == self.syndrome_bits, 0, 1 << number.clamp(max=self.syndrome_bits))
        check_place = torch.where(number > self.syndrome_bits, -1, check_place)
        block = torch.where(data, first_block[region] + inner // words, check // per_block)
        return torch.where(data, data_place, check_place), block

    def _words_of(self, layout: Layout, block: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first word of each block, and the end of the block's tensor."""
        starts, ends, first_block = self._edges(layout, block.device)
        region = torch.bucketize(block, first_block, right=True) - 1
        return starts[region] + (block - first_block[region]) * self._words(layout.bits), ends[region]

    def _edges(self, layout: Layout, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return each tensor's first word, end, and first block."""
        starts = torch.tensor([one.start for one in layout.regions], device=device)
        sizes = torch.tensor([one.words for one in layout.regions], device=device)
        blocks = torch.tensor([self._blocks_of(one.words, layout.bits) for one in layout.regions], device=device)
        return starts, starts + sizes, blocks.cumsum(0) - blocks


def _zeroed(image: Tensor, index: Tensor, words: Tensor, zeroed: Tensor, zeros: Tensor | int) -> Words:
    """Return the words read, with the code of 0 in the words ``zeroed`` (int64, sorted)."""
    every = distinct(torch.cat([index, zeroed]))
    out = image.index_select(0, every)
    out[torch.searchsorted(every, index)] = words
    out[torch.searchsorted(every, zeroed)] = zeros[zeroed].to(out.dtype) if isinstance(zeros, Tensor) else zeros
    return every, out


def _xor_by_group(values: Tensor, group: Tensor, groups: int, bits: int) -> Tensor:
    """Return the bitwise exclusive or of the values in each group."""
    place = torch.arange(bits, device=values.device)
    total = torch.zeros(groups, bits, dtype=torch.int64, device=values.device)
    total.index_add_(0, group, values[:, None] >> place & 1)
    return (total % 2 << place).sum(1)


READOUTS: dict[str, type[Readout]] = {one.kind: one for one in (Plain, ZeroFaultyWords, Secded)}


def changed_cells(image: Tensor, faults: FaultyCells, bits: int) -> Tensor:
    """Return the cells whose bit reads differently: int64 (k,), sorted."""
    word, bit = _split(faults.cell, bits, image.dtype)
    stored = (image.index_select(0, word) >> bit & 1).bool()
    return faults.cell.index_select(0, nonzero_1d(((stored & faults.keeps) ^ faults.flips) ^ stored))


def changed_words(image: Tensor, cells: Tensor, bits: int) -> Words:
    """Return (index, words): the words with changed bits, each once, and what they read.

    Args:
        image: The image as stored, integers (words,).
        cells: Cells that read differently, int64 (k,), sorted, none twice.
        bits: Cells per word.
    """
    word, bit = _split(cells, bits, image.dtype)
    first = torch.ones_like(word, dtype=torch.bool)
    torch.ne(word[1:], word[:-1], out=first[1:])
    index = word.index_select(0, nonzero_1d(first))
    mask = torch.ones((), dtype=image.dtype, device=image.device) << bit
    difference = torch.zeros_like(index, dtype=image.dtype).index_add_(0, first.cumsum(0).sub_(1), mask)
    return index, image.index_select(0, index) ^ difference


def _split(cells: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return each cell's word, int64, and its bit in the word, in the image's dtype."""
    if bits & (bits - 1):
        return cells // bits, (cells % bits).to(dtype)
    return cells >> bits.bit_length() - 1, (cells & bits - 1).to(dtype)  # several times faster than a division
