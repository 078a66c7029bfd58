"""From names of tables to their records: which steps, how long, run them, write what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuralfuse.errors import require
from neuralfuse.files import write_json
from neuralfuse.reproduce.prior import Record, joined, prior_values
from neuralfuse.reproduce.record import table_record
from neuralfuse.reproduce.tables import TABLES, Request, choose
from neuralfuse.steps.step import Step
from neuralfuse.steps.work import Work
from neuralfuse.steps.workspace import Workspace


@dataclass(frozen=True)
class Job:
    """Some rows of some tables, and where they are made.

    Attributes:
        chosen: The rows by table.
        request: What they are made with.
        workspace: Where.
        known: Records of tables from elsewhere, by table; what they measured is not measured again.
    """

    chosen: Mapping[str, Sequence[Mapping[str, Any]]]
    request: Request
    workspace: Workspace
    known: Mapping[str, Record] = field(default_factory=dict)

    @staticmethod
    def of(
        names: Sequence[str],
        where: Mapping[str, Sequence[str]],
        request: Request,
        workspace: Workspace,
        known: Mapping[str, Record] | None = None,
    ) -> Job:
        """Return the job of some names; see `choose` for its errors. Known records must be of tables among them."""
        chosen, known = choose(names, where), known or {}
        other = next((name for name in known if name not in chosen), None)
        require(other is None, f"a known record must be of a table that is asked for: got one of {other}.")
        return Job(chosen, request, workspace, known)

    @property
    def work(self) -> Work:
        """The steps of all rows that are not known."""
        steps: list[Step] = []
        for name, rows in self.chosen.items():
            for row in rows:
                step = TABLES[name].step(self.request, row)
                if step is not None and prior_values(row, step.address, self.known.get(name)) is None:
                    steps.append(step)
        return Work.of(steps, self.workspace)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(len(own) for own in self.chosen.values())

    def records(self) -> list[dict[str, Any]]:
        """Return the tables as they stand, with all their rows."""
        every = choose(list(self.chosen))
        made = {name: table_record(name, rows, self.request, self.workspace) for name, rows in every.items()}
        return [joined(record, self.known[name]) if name in self.known else record for name, record in made.items()]

    def write(self) -> list[dict[str, Any]]:
        """Write the tables as they stand; return their records."""
        records = self.records()
        for record in records:
            write_json(self.path(record["table"]), record)
        return records

    def path(self, table: str) -> Path:
        """Return the file of a table's record; other scales, faults and seeds have files of their own."""
        request = self.request
        seed = f"-seed{request.seed}" if request.seed else ""
        return self.workspace.root / f"{table}-{request.scale.name}-{request.faults}{seed}.json"
