"""Rows that were measured elsewhere: taken from their record, and not measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralfuse.errors import require
from neuralfuse.files import read_json
from neuralfuse.reproduce.record import SCHEMA
from neuralfuse.reproduce.tables import Request

Record = Mapping[str, Any]


def read_known(paths: Sequence[Path], request: Request) -> dict[str, Record]:
    """Return records of tables by the tables' names; of several of one table, the first that measured a row counts.

    Raises:
        FileFormatError: a file is no record of a table.
        ConfigError: it was made with another scale, other faults, or another seed.
    """
    found: dict[str, Record] = {}
    wanted = {"scale": request.scale.name, "faults": request.faults, "seed": request.seed}
    for path in paths:
        record = read_json(path, SCHEMA)
        made_with = {key: record["config"][key] for key in wanted}
        require(made_with == wanted, f"a known record must be made with {wanted}: {path} is with {made_with}.")
        name = record["table"]
        found[name] = joined(found[name], record) if name in found else record
    return found


def known_row(row: Mapping[str, Any], step: str | None, known: Record | None) -> dict[str, Any] | None:
    """Return a row as a known record has it, if it was measured there by the very same step."""
    for entry in () if known is None else known["rows"]:
        if entry["measured"] is not None and entry["step"] == step and entry["of"].items() <= row.items():
            return dict(entry)
    return None


def joined(record: Record, known: Record) -> dict[str, Any]:
    """Return a table's record with the rows that it lacks and a known one has."""
    rows = [row if row["measured"] else known_row(row["of"], row["step"], known) or row for row in record["rows"]]
    if rows == record["rows"]:
        return dict(record)
    parts = {key: {**known[key], **record[key]} for key in ("data", "steps", "learning")}
    return {**record, "rows": rows, **parts, "run": _joined_runs(record["run"], known["run"])}


def _joined_runs(run: Record, known: Record) -> dict[str, Any]:
    kinds = [key for key, value in run.items() if isinstance(value, list)]  # hardware, threads, versions, commits
    return {
        **{key: [*known[key], *(one for one in run[key] if one not in known[key])] for key in kinds},
        "seconds": round(run["seconds"] + known["seconds"], 1),
        "steps": {**known["steps"], **run["steps"]},
    }
