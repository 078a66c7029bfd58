"""Every number of the paper's tables, for comparison with measured values."""

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
    """Return the rows of a table that have the given values.

    Args:
        table: ``table1`` to ``table26``.
        where: Column names and their values, for instance ``base="ResNet18", ber=0.01``.
    Raises:
        UnknownNameError: there is no such table, or it has no rows.
    """
    tables = {name: one for name, one in paper()["tables"].items() if "rows" in one}
    if table not in tables:
        raise unknown_name("table", table, tables)
    return [row for row in tables[table]["rows"] if all(row.get(name) == value for name, value in where.items())]


def misprint(table: str, row: Mapping[str, Any]) -> str | None:
    """Return the note on a row's known misprint, or None."""
    for one in paper()["misprints"]:
        if one["table"] == table and "row" in one and one["row"].items() <= row.items():
            return str(one["note"])
    return None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The setup behind one row of accuracies, with the paper's names.

    Attributes:
        data: Data set.
        base: Base model that was measured.
        sources: Base models that NeuralFuse was trained on.
        generator: Generator.
        train_ber: Rate of faulty cells in training.
        ber: Rate of faulty cells in the measurement.
        bits: Bits per word of the base model.
        lam: Weight of the perturbed models' loss.
        k_bits: Bits flipped adversarially in training. 0 for random faults.
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
    """Return the setup behind a row of a table of accuracies."""
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
    """Return the paper's row for the same measurement, or None if the paper has none.

    Args:
        data: Name of the data set, ours or the paper's.
        base: Name of the base model that is measured.
        ber: Rate of faulty cells in the measurement.
        bits: Bits per word of the base model.
        generator: Name of the generator. None for the base model alone, whose row has CA and PA only.
        sources: Names of the base models that NeuralFuse was trained on.
        train_ber: Rate of faulty cells in training.
        lam: Weight of the perturbed models' loss.
        k_bits: Bits flipped adversarially in training. 0 for random faults.
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


# Tables in search order. Table 26 is left out because its base model was trained differently.
_MEASURED = [f"table{number}" for number in (12, 13, 14, 15, 10, 11, 1, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)]


def _sorted(names: Sequence[str]) -> str:
    return "+".join(sorted(name.lower() for name in names))


def _same(one: object, other: object) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.lower().replace("-", "") == other.lower().replace("-", "")
    return one == other
