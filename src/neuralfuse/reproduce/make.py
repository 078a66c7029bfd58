"""From names of tables to their records: which steps, how long, run them, write what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuralfuse.errors import DataError, UnfinishedError
from neuralfuse.files import check_writable, write_json
from neuralfuse.reproduce.cost import duration, speed
from neuralfuse.reproduce.draw import draw
from neuralfuse.reproduce.engines import Engine
from neuralfuse.reproduce.place import Place
from neuralfuse.reproduce.record import table_record
from neuralfuse.reproduce.runner import Progress, finished, ordered, run
from neuralfuse.reproduce.steps import Step
from neuralfuse.reproduce.tables import Request, choose, steps_of
from neuralfuse.reproduce.trainings import BaseStep


@dataclass(frozen=True)
class Job:
    """Some rows of some tables, and where they are made.

    Attributes:
        chosen: The rows by table.
        request: What they are made with.
        place: Where.
    """

    chosen: Mapping[str, Sequence[Mapping[str, Any]]]
    request: Request
    place: Place

    @staticmethod
    def of(names: Sequence[str], where: Mapping[str, Sequence[str]], request: Request, place: Place) -> Job:
        """Return the job of some names; see `choose` for its errors."""
        return Job(choose(names, where), request, place)

    @property
    def steps(self) -> list[Step]:
        """All steps, each after what it needs."""
        return ordered(steps_of(self.chosen, self.request))

    def fetch_data(self) -> None:
        """Raise a `DataError` unless the images of all steps to do are there, or can be fetched."""
        done = finished(self.steps, self.place)
        left = (step.images for step in self.steps if isinstance(step, BaseStep))
        wanted = dict.fromkeys(left) if len(done) < len(self.steps) else {}
        for images in wanted:
            try:
                self.place.fetch(images)
            except DataError as error:
                raise DataError(f"{error} --scale smoke needs no images but those of the package.") from error

    def run(
        self,
        on: Engine,
        *,
        retries: int,
        say: Callable[[str], None],
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> list[dict[str, Any]]:
        """Do all steps that are not finished, write the tables, and return their records.

        Raises:
            UnfinishedError: steps failed; the tables were written without them.
        """
        self.fetch_data()
        check_writable(self.place.root)
        place = replace(self.place, download=False)  # what workers need is there now
        end = run(self.steps, place, on, retries=retries, say=say, watch=watch)
        records = self.write()
        if end.failed:
            first = next(iter(end.failed.items()))
            raise UnfinishedError(
                f"{len(end.failed)} of {len(end.steps)} steps failed and {len(end.blocked)} need them; all else is "
                f"kept in {self.place.root}. The first: {end.steps[first[0]].title}: {first[1]}"
            )
        return records

    def records(self) -> list[dict[str, Any]]:
        """Return the tables as they stand, with all their rows."""
        every = choose(list(self.chosen))
        return [table_record(name, rows, self.request, self.place) for name, rows in every.items()]

    def write(self) -> list[dict[str, Any]]:
        """Write the tables as they stand, and the pictures of figures; return their records."""
        records = self.records()
        for record in records:
            path = self.path(record["table"])
            write_json(path, record)
            if record["table"].startswith("figure"):
                draw(record, path.with_suffix(".png"))
        return records

    def path(self, table: str) -> Path:
        """Return the file of a table's record; other scales, faults and seeds have files of their own."""
        request = self.request
        seed = f"-seed{request.seed}" if request.seed else ""
        return self.place.root / f"{table}-{request.scale.name}-{request.faults}{seed}.json"

    def status(self) -> dict[str, Any]:
        """Return where every step stands: finished, running, failed, or waiting, and how long the rest will take."""
        steps, store = self.steps, self.place.store
        done = finished(steps, self.place)
        pace = speed(steps, self.place)
        return {
            "source": pace.source,
            "workers_seconds": sum(pace.seconds(step) for step in steps if step.address not in done),
            "steps": [
                {
                    "address": step.address,
                    "title": step.title,
                    "state": (state := _state(store, step, done)),
                    "seconds": 0.0 if state == "finished" else pace.seconds(step),
                    **({"progress": store.progress(step.address)} if state == "running" else {}),
                    **({"error": store.failure(step.address)} if state == "failed" else {}),
                }
                for step in steps
            ],
        }


def _state(store: Any, step: Step, done: set[str]) -> str:
    if step.address in done:
        return "finished"
    if store.is_held(step.address):
        return "running"
    return "waiting" if store.failure(step.address) is None else "failed"


def outline(job: Job, workers: int) -> str:
    """Return what a job would do, step by step, with estimated times."""
    status = job.status()
    lines = [f"{'about':>12}  step"]
    for step in status["steps"]:
        lines.append(f"{'finished' if step['state'] == 'finished' else duration(step['seconds']):>12}  {step['title']}")
    waiting = sum(step["state"] != "finished" for step in status["steps"])
    rows = sum(len(own) for own in job.chosen.values())
    kinds = Counter(step["address"].partition("-")[0] for step in status["steps"])
    parts = ", ".join(f"{number} {kind} steps" for kind, number in kinds.items()) or "no steps"
    left = duration(status["workers_seconds"] / max(1, workers))
    lines += [
        "",
        f"{rows} rows: {parts}, {waiting} of them to do",
        f"at most about {left} with {max(1, workers)} at a time, {status['source']}",
    ]
    return "\n".join(lines)


def standing(job: Job) -> str:
    """Return how far a job is."""
    status = job.status()
    states = [step["state"] for step in status["steps"]]
    lines = [
        ", ".join(f"{states.count(state)} {state}" for state in ("finished", "running", "failed", "waiting"))
        + f"; at most about {duration(status['workers_seconds'])} of one worker left, {status['source']}"
    ]
    for step in status["steps"]:
        if step["state"] == "running":
            note = step["progress"]
            part = f"{note.get('done', 0)} of {note.get('total', '?')} {note.get('note', '')}"
            lines.append(f"running: {step['title']}: {part}")
        if step["state"] == "failed":
            lines.append(f"failed: {step['title']}: {step['error']}")
    return "\n".join(lines)
