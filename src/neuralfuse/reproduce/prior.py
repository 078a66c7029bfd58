"""Prior records of tables, measured elsewhere: their rows are reused, not measured again."""

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
    """Return prior records by table. Of several records of one table, the first that measured a row counts.

    Raises:
        FileFormatError: a file is not the record of a table.
        ConfigError: a record was made with another scale, fault model or seed.
    """
    found: dict[str, Record] = {}
    wanted = {"scale": request.scale.name, "faults": request.faults, "seed": request.seed}
    for path in paths:
        record = read_json(path, SCHEMA)
        missing = [key for key in ("table", "config", "rows", "data", "steps", "learning", "run") if key not in record]
        if missing:
            raise FileFormatError(f"{path} must be a complete record of a table: it has no {missing[0]}.")
        made_with = {key: record["config"].get(key) for key in wanted}
        require(made_with == wanted, f"a record of --known must be made with {wanted}: {path} has {made_with}.")
        name = record["table"]
        found[name] = joined(found[name], record) if name in found else record
    return found


def prior_values(row: Mapping[str, Any], step: str | None, prior: Record | None) -> dict[str, Any] | None:
    """Return a prior record's measurement of a row, if it was made by the same step; else None."""
    for entry in () if prior is None else prior["rows"]:
        if entry["measured"] is not None and entry["step"] == step and entry["of"].items() <= row.items():
            return dict(entry["measured"])
    return None


def joined(record: Record, prior: Record) -> dict[str, Any]:
    """Return a table's record, with missing measurements taken from a prior one."""
    rows = [
        {**row, "measured": row["measured"] or prior_values(row["of"], row["step"], prior)} for row in record["rows"]
    ]
    if rows == record["rows"]:
        return dict(record)
    parts = {key: {**prior[key], **record[key]} for key in ("data", "steps", "learning")}
    return {**record, "rows": rows, **parts, "run": _joined_runs(record["run"], prior["run"])}


def _joined_runs(run: Record, prior: Record) -> dict[str, Any]:
    kinds = [key for key, value in run.items() if isinstance(value, list)]  # hardware, threads, versions, commits
    steps = {**prior["steps"], **run["steps"]}
    return {
        **{key: [*prior[key], *(one for one in run[key] if one not in prior[key])] for key in kinds},
        "seconds": round(sum(step["seconds"] for step in steps.values()), 1),
        "steps": steps,
        **({"timings": {**prior.get("timings", {}), **run["timings"]}} if "timings" in run else {}),
    }
