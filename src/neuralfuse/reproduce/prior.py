"""Rows that were measured elsewhere: taken from their record, and not measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralfuse.errors import FileFormatError, require
from neuralfuse.files import read_json
from neuralfuse.reproduce.record import SCHEMA
from neuralfuse.reproduce.tables import Request

Record = Mapping[str, Any]


def read_prior(paths: Sequence[Path], request: Request) -> dict[str, Record]:
    """Return records of tables by the tables' names; of several of one table, the first that measured a row counts.

    Raises:
        FileFormatError: a file is no record of a table.
        ConfigError: it was made with another scale, other faults, or another seed.
    """
    found: dict[str, Record] = {}
    wanted = {"scale": request.scale.name, "faults": request.faults, "seed": request.seed}
    for path in paths:
        record = read_json(path, SCHEMA)
        missing = [key for key in ("table", "config", "rows", "data", "steps", "learning", "run") if key not in record]
        if missing:
            raise FileFormatError(f"{path} must be a whole record of a table: it has no {missing[0]}.")
        made_with = {key: record["config"].get(key) for key in wanted}
        require(made_with == wanted, f"a known record must be made with {wanted}: {path} is with {made_with}.")
        name = record["table"]
        found[name] = joined(found[name], record) if name in found else record
    return found


def prior_values(row: Mapping[str, Any], step: str | None, known: Record | None) -> dict[str, Any] | None:
    """Return what a known record measured for a row, if it did so by the very same step."""
    for entry in () if known is None else known["rows"]:
        if entry["measured"] is not None and entry["step"] == step and entry["of"].items() <= row.items():
            return dict(entry["measured"])
    return None


def joined(record: Record, known: Record) -> dict[str, Any]:
    """Return a table's record with the rows that it lacks and a known one has."""
    rows = [
        {**row, "measured": row["measured"] or prior_values(row["of"], row["step"], known)} for row in record["rows"]
    ]
    if rows == record["rows"]:
        return dict(record)
    parts = {key: {**known[key], **record[key]} for key in ("data", "steps", "learning")}
    return {**record, "rows": rows, **parts, "run": _joined_runs(record["run"], known["run"])}


def _joined_runs(run: Record, known: Record) -> dict[str, Any]:
    kinds = [key for key, value in run.items() if isinstance(value, list)]  # hardware, threads, versions, commits
    steps = {**known["steps"], **run["steps"]}
    return {
        **{key: [*known[key], *(one for one in run[key] if one not in known[key])] for key in kinds},
        "seconds": round(sum(step["seconds"] for step in steps.values()), 1),
        "steps": steps,
        **({"timings": {**known.get("timings", {}), **run["timings"]}} if "timings" in run else {}),
    }
