"""Arrays of cells in rows and columns, and the layout of words on them, which connects a fault map with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from neuralfuse.errors import ConfigError, require, unknown_name
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.layout import Layout

Order = Literal["rows", "interleaved"]


@dataclass(frozen=True, kw_only=True)
class Array:
    """The shape of a memory: banks of ``rows`` x ``columns`` cells.

    The default is the shape of the measured 14 nm arrays behind the paper's voltage curve, 512 words of 64 bits.

    Args:
        rows: Word lines per bank.
        columns: Bit lines per bank.
        banks: Number of banks. An image that needs more reuses them. None for as many as the image needs.
    """

    rows: int = 512
    columns: int = 64
    banks: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "banks"):
            value = getattr(self, name)
            legal = value is None if name == "banks" and value is None else isinstance(value, int) and value >= 1
            require(legal, f"{name} of an array must be at least 1: got {name}={value}.")
        cells = self.rows * self.columns * (self.banks or 1)
        require(cells <= 1 << 34, f"an array must have at most 2^34 cells: got {cells}.")


@dataclass(frozen=True, kw_only=True)
class WordLayout:
    """The layout of an image of words on an array: which cell holds which bit.

    A row holds w = columns // bits words, in *slots* of ``bits`` adjacent columns, bit 0 first. The remaining columns
    are unused. The word with number g lies

    ``rows``         in slot g mod w of row (g div (w * repeat)) mod rows: one row is filled after the other.
                     With ``repeat`` > 1, a row serves ``repeat`` groups of w words before the next row is used.
    ``interleaved``  in row g mod rows, slot (g div rows) mod w: successive words lie in successive rows.

    When all rows are full, the next bank follows.

    Args:
        order: ``rows`` or ``interleaved``.
        repeat: Number of groups per row, see ``rows``; 0 means w.
        restart: Whether each tensor starts again at number ``offset``, as if the layers took turns in one memory. By
            default, each tensor follows the one before, in state_dict order.
        offset: Number of the first word.
        bit_interleaved: Whether bit j of slot s lies in column j * w + s, as in arrays with column multiplexers.
    """

    order: Order = "rows"
    repeat: int = 1
    restart: bool = False
    offset: int = 0
    bit_interleaved: bool = False

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise unknown_name("order", str(self.order), get_args(Order))
        for name in ("offset", "repeat"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 0, f"{name} must be an integer of at least 0: got {value!r}.")
        for name in ("restart", "bit_interleaved"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"{name} must be true or false: got {value!r}.")
        require(
            self.order == "rows" or self.repeat == 1,
            f"repeat must be 1 for interleaved words: got repeat={self.repeat}.",
        )

    @staticmethod
    def of(value: WordLayout | str | Mapping[str, Any]) -> WordLayout:
        """Return a word layout from its name or its fields; return a word layout unchanged."""
        if isinstance(value, WordLayout):
            return value
        if isinstance(value, str):
            if value not in WORD_LAYOUTS:
                raise unknown_name("mapping", value, WORD_LAYOUTS)
            return WORD_LAYOUTS[value]
        try:
            return WordLayout(**value)
        except TypeError as error:
            raise ConfigError(f"a mapping must have fields of neuralfuse.faults.WordLayout: {error}.") from error

    def slots(self, array: Array, bits: int) -> int:
        """Return w, the number of words per row.

        Raises:
            ConfigError: a row is narrower than a word.
        """
        require(
            array.columns >= bits,
            f"a row must hold at least one word of {bits} bits: got an array of {array.columns} columns.",
        )
        return array.columns // bits

    def words(self, array: Array, bits: int) -> int:
        """Return the number of words that one bank serves."""
        w = self.slots(array, bits)
        return array.rows * w * (self.repeat or w)

    def banks(self, layout: Layout, array: Array) -> int:
        """Return the number of banks that the image fills. A reused bank counts each time."""
        per_bank = self.words(array, layout.bits)
        return max(-(-(words + self.offset) // per_bank) for _, words in self._spaces(layout))

    def locate(self, layout: Layout, array: Array, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (bank, row, column) of cells of an image, int64 each.

        If the array has a fixed number of banks, the bank is the physical one.
        """
        bits, w = layout.bits, self.slots(array, layout.bits)
        word, bit = cell // bits, cell % bits
        number = word + self.offset
        if self.restart:
            starts = torch.tensor([region.start for region in layout.regions], device=cell.device)
            number = number - starts[torch.bucketize(word, starts, right=True) - 1]
        if self.order == "rows":
            slot, line = number % w, number // (w * (self.repeat or w))
            row, bank = line % array.rows, line // array.rows
        else:
            row, line = number % array.rows, number // array.rows
            slot, bank = line % w, line // w
        column = bit * w + slot if self.bit_interleaved else slot * bits + bit
        return bank if array.banks is None else bank % array.banks, row, column

    def place(self, layout: Layout, array: Array, faults: FaultyCells) -> FaultyCells:
        """Return the cells of an image that lie on faulty cells of an array, once per use of an array's cell.

        ``faults.cell`` numbers the array's cells as (bank * rows + row) * columns + column.
        """
        bits, w = layout.bits, self.slots(array, layout.bits)
        line, column = faults.cell // array.columns, faults.cell % array.columns
        bank, row = line // array.rows, line % array.rows
        first = (bank * self.words(array, bits)) + row * ((self.repeat or w) * w if self.order == "rows" else 1)
        used = (column < w * bits) & (first < self.offset + max(words for _, words in self._spaces(layout)))
        faults, bank, row, column = faults[used], bank[used], row[used], column[used]
        slot, bit = (column % w, column // w) if self.bit_interleaved else (column // bits, column % bits)

        uses = 1 if array.banks is None else -(-self.banks(layout, array) // array.banks)
        step = 0 if array.banks is None else array.banks
        again = torch.arange(uses, device=bank.device)[:, None] * step + bank
        if self.order == "rows":
            repeat = self.repeat or w
            group = torch.arange(repeat, device=bank.device)[:, None, None]
            number = (((again * array.rows + row) * repeat + group) * w + slot).flatten(0, 1)
        else:
            number = (again * w + slot) * array.rows + row
        number = number - self.offset

        found = []
        for start, words in self._spaces(layout):
            turn, which = ((number >= 0) & (number < words)).nonzero(as_tuple=True)
            cell = (number[turn, which] + start) * bits + bit[which]
            found.append(FaultyCells(cell, faults.keeps[which], faults.flips[which]))
        columns = [torch.cat([getattr(one, name) for one in found]) for name in ("cell", "keeps", "flips")]
        return FaultyCells.of(*columns)

    def _spaces(self, layout: Layout) -> list[tuple[int, int]]:
        if self.restart:
            return [(region.start, region.words) for region in layout.regions]
        return [(0, layout.words)]


WORD_LAYOUTS = {
    "linear": WordLayout(),
    "per-layer": WordLayout(restart=True),
    "row-interleaved": WordLayout(order="interleaved"),
    "bit-interleaved": WordLayout(bit_interleaved=True),
    "reference": WordLayout(repeat=0, restart=True),
}
