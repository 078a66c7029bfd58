"""Every number in the paper's tables, to stand beside what is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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


def misprint(table: str, row: Mapping[str, Any]) -> str | None:
    """Return what is known to be wrong with a printed row, or None."""
    for one in paper()["misprints"]:
        if one["table"] == table and "row" in one and one["row"].items() <= row.items():
            return str(one["note"])
    return None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a row of accuracies was measured on, in the paper's names.

    Attributes:
        data: The data set.
        base: The base model that is measured.
        sources: The base models that NeuralFuse was trained on.
        generator: The generator.
        train_ber: The rate of faulty cells that it was trained at.
        ber: The rate that it is measured at.
        bits: Width of the base model's words.
        lam: The weight of the perturbed models' loss.
        k_bits: Bits inverted adversarially in training; 0 where faults came by chance.
    """

    data: str
    base: str
    sources: tuple[str, ...]
    generator: str
    train_ber: float
    ber: float
    bits: int = 8
    lam: float = 5.0
    k_bits: int = 0


def measurement(table: str, row: Mapping[str, Any]) -> Measurement:
    """Return what a row of a table of accuracies was measured on."""
    base = str(row.get("target", row.get("base")))
    return Measurement(
        data=paper()["tables"][table]["dataset"],
        base=base,
        sources=tuple(str(row.get("source", base)).split("+")),
        generator=row["generator"],
        train_ber=row.get("train_ber", row["ber"]),
        ber=row["ber"],
        bits=row.get("bits", 8),
        lam=float(row.get("lambda", 5.0)),
        k_bits=row.get("k_bits", 0),
    )


def counterpart(
    *,
    data: str,
    base: str,
    ber: float,
    bits: int = 8,
    generator: str | None = None,
    sources: Sequence[str] = (),
    train_ber: float | None = None,
    lam: float = 5.0,
    k_bits: int = 0,
) -> dict[str, Any] | None:
    """Return the paper's row for the same measurement, or None where it printed none.

    Args:
        data: Name of the data set, ours or the paper's.
        base: Name of the base model that is measured.
        ber: Rate of faulty cells.
        bits: Width of the base model's words.
        generator: Name of the generator; None for the base model alone, whose row has CA and PA only.
        sources: Names of the base models that NeuralFuse was trained on.
        train_ber: The rate that it was trained at.
        lam: The weight of the perturbed models' loss.
        k_bits: Bits inverted adversarially in training; 0 where faults came by chance.
    """
    alone = generator is None
    asked = {"data": data, "base": base, "bits": bits, "ber": ber}
    if not alone:
        trained = {"generator": generator, "train_ber": train_ber, "lam": lam, "k_bits": k_bits}
        asked |= {**trained, "sources": _sorted(sources)}
    for table in _MEASURED if not alone else ("table12", "table13", "table14", "table15"):
        for row in rows(table):
            own = asdict(measurement(table, row))
            own["sources"] = _sorted(own["sources"])
            if all(_same(asked[name], own[name]) for name in asked):
                shown = ("ca", "pa", "pa_std") if alone else ("ca", "pa", "pa_std", "ca_nf", "pa_nf", "pa_nf_std", "rp")
                return {"table": table, **{name: row[name] for name in shown}, "misprint": misprint(table, row)}
    return None


# In the order in which a row is looked for; the base model of Table 26 had a training of its own.
_MEASURED = [f"table{number}" for number in (12, 13, 14, 15, 10, 11, 1, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)]


def _sorted(names: Sequence[str]) -> str:
    return "+".join(sorted(name.lower() for name in names))


def _same(one: object, other: object) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.lower().replace("-", "") == other.lower().replace("-", "")
    return one == other
