"""Tables of cells as text, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

Row = Sequence[str]


def text_table(heads: Row, rows: Iterable[Row], *, align: str = "left") -> str:
    """Return a table as aligned text, with two spaces between columns."""
    made = tabulate([heads, *rows], tablefmt="plain", colalign=[align] * len(heads), disable_numparse=True)
    return "\n".join(line.rstrip() for line in made.splitlines())


def markdown_table(heads: Row, rows: Iterable[Row]) -> list[str]:
    """Return the lines of a Markdown table, without padding. (tabulate would pad every cell to its column's width.)"""
    return [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def latex_table(title: str, heads: Row, rows: Iterable[Row]) -> str:
    """Return a LaTeX table (package booktabs)."""
    body = tabulate(rows, heads, tablefmt="latex_booktabs", colalign=["left"] * len(heads), disable_numparse=True)
    return f"\\begin{{table}}\n\\caption{{{_escaped(title)}}}\n{body}\n\\end{{table}}\n".replace("+-", r"$\pm$")


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "&%#_{}" else char for char in text)
