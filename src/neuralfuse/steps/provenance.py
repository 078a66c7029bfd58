"""The provenance of a record: the finished steps that it is made from."""

from __future__ import annotations

from typing import Any

from neuralfuse.errors import FileFormatError
from neuralfuse.steps.step import Step
from neuralfuse.steps.workspace import Workspace


class Provenance:
    """Collects the finished steps that a record uses, with all steps that those need.

    Args:
        workspace: The workspace that holds the steps.

    Attributes:
        records: Records of the collected steps, by address.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.records: dict[str, dict[str, Any]] = {}

    def record(self, step: Step) -> dict[str, Any] | None:
        """Return a step's record and collect it; None if the step is not finished."""
        if step.address in self.records:
            return self.records[step.address]
        try:
            record = self._workspace.store.record(step.address, whole=False)
        except FileFormatError:
            return None
        if record is not None:
            for other in step.needs:
                self.record(other)
            self.records[step.address] = record
        return record

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """The configuration of each collected step, by address."""
        return {name: one["config"] for name, one in self.records.items()}

    @property
    def runs(self) -> dict[str, Any]:
        """The values that vary from run to run: each distinct machine and version once, and the time of each step."""
        runs = [record["run"] for record in self.records.values()]
        distinct: dict[str, list[Any]] = {key: [] for key in ("hardware", "threads", "versions", "commit")}
        for run in runs:
            for key, found in distinct.items():
                if run.get(key) not in found:
                    found.append(run.get(key))
        return {
            **distinct,
            "seconds": round(sum(run["seconds"] for run in runs), 1),
            "steps": {
                name: {key: one["run"][key] for key in ("seconds", "finished")} for name, one in self.records.items()
            },
        }
