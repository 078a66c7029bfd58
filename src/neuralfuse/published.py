"""Every number in the paper's tables, to stand beside what is measured."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from neuralfuse.errors import unknown_name


@cache
def paper() -> dict[str, Any]:
    """Return the paper's tables with their titles, rows and misprints, as JSON.

    Source:
        NeuralFuse, arXiv 2306.16869v3 (NeurIPS 2024), Tables 1 to 26.
    """
    text = resources.files("neuralfuse").joinpath("published.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def rows(table: str, **where: Any) -> list[dict[str, Any]]:
    """Return the rows of a table whose entries are these.

    Args:
        table: ``table1`` to ``table26``.
        where: Names of columns and their values, for instance ``base="ResNet18", ber=0.01``.
    Raises:
        UnknownNameError: there is no such table with rows.
    """
    tables = {name: one for name, one in paper()["tables"].items() if "rows" in one}
    if table not in tables:
        raise unknown_name("table", table, tables)
    return [row for row in tables[table]["rows"] if all(row.get(name) == value for name, value in where.items())]


def misprint(table: str, row: dict[str, Any]) -> str | None:
    """Return what is known to be wrong with a printed row, or None."""
    for one in paper()["misprints"]:
        if one["table"] == table and "row" in one and one["row"].items() <= row.items():
            return str(one["note"])
    return None
