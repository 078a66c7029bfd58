"""A table as a record: the published values beside what was measured, and all that was done for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from neuralfuse import published
from neuralfuse.errors import ConfigError
from neuralfuse.reproduce.tables import TABLES, Request, keys
from neuralfuse.runs import command
from neuralfuse.steps.measurements import EvaluationStep
from neuralfuse.steps.provenance import Provenance
from neuralfuse.steps.trainings import BaseStep, ModuleStep
from neuralfuse.steps.workspace import Workspace

SCHEMA = "neuralfuse/table/1"


def table_record(
    name: str, rows: Sequence[Mapping[str, Any]], request: Request, workspace: Workspace
) -> dict[str, Any]:
    """Return a table as a record: each row with its published values, what was measured (None: not yet), its step."""
    table, scale = TABLES[name], request.scale
    made: list[dict[str, Any]] = []
    used = Provenance(workspace)
    timings: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            step = table.step(request, row)
            record = {} if step is None else used.record(step)
            measured = None if record is None else table.measured(request, row, record)
            if step is not None and measured is not None and table.timings:
                timings[step.address] = {name: measured.pop(name) for name in table.timings}
        except ConfigError:  # the scale has nothing for this row
            step, measured = None, None
        comparable = request.comparable or not isinstance(step, EvaluationStep)
        made.append(
            {
                "of": {key: row[key] for key in keys(name)},
                "published": {key: row[key] for key in table.values if key in row} if comparable else None,
                "misprint": table.misprint(row) if comparable else None,
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
            "data": {data: asdict(one.images) for data, one in scale.recipes.items()},
        },
        "data": {one["name"]: one for one in _images(used)},
        "rows": made,
        "steps": used.configs,
        "learning": dict(_learning(used)),
        "run": {**command(), **used.runs, **({"timings": timings} if timings else {})},
    }


def _learning(used: Provenance) -> Iterator[tuple[str, Any]]:
    """Yield each module's accuracies on validation images and chips, step by step."""
    for name, record in used.records.items():
        if name.startswith(f"{ModuleStep.kind}-"):
            yield name, record["result"]["history"]


def _images(used: Provenance) -> Iterator[dict[str, Any]]:
    """Yield what base models were trained on."""
    for name, record in used.records.items():
        if name.startswith(f"{BaseStep.kind}-"):
            yield record["result"]["config"]["data"]
