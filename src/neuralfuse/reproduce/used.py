"""The finished steps that a record rests on."""

from __future__ import annotations

from typing import Any

from neuralfuse.errors import FileFormatError
from neuralfuse.reproduce.place import Place
from neuralfuse.reproduce.steps import Step


class Used:
    """Finished steps, with all that they need, as they are asked for.

    Args:
        place: Where they are kept.

    Attributes:
        records: Of those that were asked for and are finished, by address.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.records: dict[str, dict[str, Any]] = {}

    def record(self, step: Step) -> dict[str, Any] | None:
        """Return a step's record, None where it is not finished."""
        if step.address in self.records:
            return self.records[step.address]
        try:
            record = self._place.store.record(step.address, whole=False)
        except FileFormatError:
            return None
        if record is not None:
            for other in step.needs:
                self.record(other)
            self.records[step.address] = record
        return record

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """What each of them was made from."""
        return {name: one["config"] for name, one in self.records.items()}

    @property
    def runs(self) -> dict[str, Any]:
        """What varied from run to run: what is common to all of them once, and the rest of each."""
        runs = [record["run"] for record in self.records.values()]
        common = ("hardware", "threads", "versions", "commit")
        distinct = {key: [run.get(key) for run in runs] for key in common}
        return {
            **{
                key: [one for place, one in enumerate(values) if one not in values[:place]]
                for key, values in distinct.items()
            },
            "seconds": round(sum(run["seconds"] for run in runs), 1),
            "steps": {
                name: {key: one["run"][key] for key in ("seconds", "finished")} for name, one in self.records.items()
            },
        }
