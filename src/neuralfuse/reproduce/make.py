"""From names of tables to their records: the steps to run, and the records to write."""

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
    """Rows of tables to reproduce in a workspace.

    Attributes:
        chosen: The rows by table.
        request: The scale, fault model and seed to reproduce them with.
        workspace: The workspace that holds the steps and the records.
        prior: Prior records of tables, by table. Rows that they measured are not measured again.
    """

    chosen: Mapping[str, Sequence[Mapping[str, Any]]]
    request: Request
    workspace: Workspace
    prior: Mapping[str, Record] = field(default_factory=dict)

    @staticmethod
    def of(
        names: Sequence[str],
        where: Mapping[str, Sequence[str]],
        request: Request,
        workspace: Workspace,
        prior: Mapping[str, Record] | None = None,
    ) -> Job:
        """Return the job for these tables.

        Args:
            names: Names of tables; see `choose`.
            where: Wanted values by column; see `choose`.
            request: The scale, fault model and seed.
            workspace: The workspace that holds the steps and the records.
            prior: Prior records, by table.
        Raises:
            UnknownNameError: see `choose`.
            ConfigError: a prior record is of a table that is not among ``names``.
        """
        chosen, prior = choose(names, where), prior or {}
        other = next((name for name in prior if name not in chosen), None)
        require(
            other is None, f"a record of --known must be of a table to reproduce: got one of {other}. Name {other} too."
        )
        return Job(chosen, request, workspace, prior)

    @property
    def work(self) -> Work:
        """The steps of all rows that have no prior measurement."""
        steps: list[Step] = []
        for name, rows in self.chosen.items():
            for row in rows:
                step = TABLES[name].step(self.request, row)
                if step is not None and prior_values(row, step.address, self.prior.get(name)) is None:
                    steps.append(step)
        return Work.of(steps, self.workspace)

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(len(own) for own in self.chosen.values())

    def records(self) -> list[dict[str, Any]]:
        """Return the tables' records so far, with all their rows."""
        every = choose(list(self.chosen))
        made = {name: table_record(name, rows, self.request, self.workspace) for name, rows in every.items()}
        return [joined(record, self.prior[name]) if name in self.prior else record for name, record in made.items()]

    def write(self) -> list[dict[str, Any]]:
        """Write the tables' records so far; return them."""
        records = self.records()
        for record in records:
            write_json(self.path(record["table"]), record)
        return records

    def path(self, table: str) -> Path:
        """Return the file of a table's record. Each scale, fault model and seed has its own file."""
        request = self.request
        seed = f"-seed{request.seed}" if request.seed else ""
        return self.workspace.root / f"{table}-{request.scale.name}-{request.faults}{seed}.json"
