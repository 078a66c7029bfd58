"""A table as a record: the published values beside what was measured, and all that was done for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from neuralfuse import published
from neuralfuse.errors import ConfigError, FileFormatError
from neuralfuse.reproduce.measurements import EvaluationStep
from neuralfuse.reproduce.place import Place
from neuralfuse.reproduce.steps import Step
from neuralfuse.reproduce.tables import TABLES, Request, keys
from neuralfuse.reproduce.trainings import BaseStep

SCHEMA = "neuralfuse/table/1"


def table_record(name: str, rows: Sequence[Mapping[str, Any]], request: Request, place: Place) -> dict[str, Any]:
    """Return a table as a record: each row with its published values, what was measured (None: not yet), its step."""
    table, scale = TABLES[name], request.scale
    made: list[dict[str, Any]] = []
    used: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            step = table.step(request, row)
            record = {} if step is None else _finished(step, place, used)
            measured = None if record is None else table.measured(request, row, record)
        except ConfigError:  # the scale has nothing for this row
            step, measured = None, None
        comparable = request.comparable or not isinstance(step, EvaluationStep)
        made.append(
            {
                "of": {key: row[key] for key in keys(name)},
                "published": {key: row[key] for key in table.values if key in row} if comparable else None,
                "misprint": published.misprint(name, dict(row)) if comparable and name.startswith("table") else None,
                "measured": measured,
                "step": None if step is None else step.address,
            }
        )
    return {
        "schema": SCHEMA,
        "table": name,
        "title": table.title,
        "source": published.paper()["source"],
        "config": {
            "scale": scale.name,
            "scale_title": scale.title,
            "rate_factor": scale.rate_factor,
            "faults": request.faults,
            "seed": request.seed,
            "data": {data: asdict(one.images) for data, one in scale.settings.items()},
        },
        "data": {one["name"]: one for one in _images(used)},
        "rows": made,
        "steps": {name: one["config"] for name, one in used.items()},
        "run": _runs(used),
    }


def _images(used: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what base models were trained on."""
    for name, record in used.items():
        if name.startswith(f"{BaseStep.kind}-"):
            yield record["result"]["config"]["data"]


def _finished(step: Step, place: Place, used: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return a step's record if it is finished, and enter it and all that it needs into ``used``."""
    if step.address in used:
        return used[step.address]
    try:
        record = place.store.record(step.address, whole=False)
    except FileFormatError:
        return None
    if record is not None:
        for other in step.needs:
            _finished(other, place, used)
        used[step.address] = record
    return record


def _runs(used: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what varied from run to run: what is common to all steps once, and the rest of each."""
    runs = [record["run"] for record in used.values()]
    common = ("hardware", "threads", "versions", "commit")
    distinct = {key: [run.get(key) for run in runs] for key in common}
    return {
        **{
            key: [one for place, one in enumerate(values) if one not in values[:place]]
            for key, values in distinct.items()
        },
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "steps": {name: {key: one["run"][key] for key in ("seconds", "finished")} for name, one in used.items()},
    }
