"""A table as a record: measured and published values, and the steps that it is made from."""

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
    """Return a table as a record. Each row has its published values, its measured ones (None: not yet) and its step."""
    table, scale = TABLES[name], request.scale
    made: list[dict[str, Any]] = []
    provenance = Provenance(workspace)
    timings: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            step = table.step(request, row)
            record = {} if step is None else provenance.record(step)
            measured = None if record is None else table.measured(request, row, record)
            if step is not None and measured is not None and table.timings:
                timings[step.address] = {name: measured.pop(name) for name in table.timings}
        except ConfigError:  # the scale has no recipe for this row
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
        "data": {one["name"]: one for one in _images(provenance)},
        "rows": made,
        "steps": provenance.configs,
        "learning": dict(_learning(provenance)),
        "run": {**command(), **provenance.runs, **({"timings": timings} if timings else {})},
    }


def _learning(provenance: Provenance) -> Iterator[tuple[str, Any]]:
    """Yield the name and the validation history of each NeuralFuse."""
    for name, record in provenance.records.items():
        if name.startswith(f"{ModuleStep.kind}-"):
            yield name, record["result"]["history"]


def _images(provenance: Provenance) -> Iterator[dict[str, Any]]:
    """Yield the configurations of the data sets that base models were trained on."""
    for name, record in provenance.records.items():
        if name.startswith(f"{BaseStep.kind}-"):
            yield record["result"]["config"]["data"]
