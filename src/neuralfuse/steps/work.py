"""A list of steps as work: prepare it, run it, and report its status and remaining time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neuralfuse.errors import DataError, UnfinishedError
from neuralfuse.files import check_writable
from neuralfuse.steps.cost import duration, speed
from neuralfuse.steps.engines import Engine
from neuralfuse.steps.runner import Progress, finished, ordered, run_steps
from neuralfuse.steps.step import Step
from neuralfuse.steps.store import Store
from neuralfuse.steps.trainings import BaseStep
from neuralfuse.steps.workspace import Workspace


@dataclass(frozen=True)
class Work:
    """Steps in a workspace.

    Attributes:
        steps: All steps in topological order.
        workspace: The workspace that holds them.
    """

    steps: Sequence[Step]
    workspace: Workspace

    @staticmethod
    def of(wanted: Sequence[Step], workspace: Workspace) -> Work:
        """Return the work that consists of these steps and all that they need."""
        return Work(ordered(wanted), workspace)

    def prepare(self) -> None:
        """Check that the images and the output folder are there. Download missing images if the workspace allows it.

        Raises:
            DataError: images are missing.
            OutputError: the folder cannot be written.
        """
        done = finished(self.steps, self.workspace)
        left = (step.images for step in self.steps if isinstance(step, BaseStep))
        wanted = dict.fromkeys(left) if len(done) < len(self.steps) else {}
        for images in wanted:
            try:
                self.workspace.fetch(images)
            except DataError as error:
                raise DataError(f"{error} --scale smoke needs only the images in the package.") from error
        check_writable(self.workspace.root)

    def run(
        self,
        on: Engine,
        *,
        retries: int,
        say: Callable[[str], None],
        watch: Callable[[Progress], None] = lambda progress: None,
        began: Callable[[], None] = lambda: None,
    ) -> Progress:
        """Run all unfinished steps and return the progress, failed steps included.

        Args:
            on: The engine that runs the steps.
            retries: Number of retries of a failed step.
            say: Called with one line of text per finished, damaged or failed step.
            watch: Called with the progress about every half second.
            began: Called once, after `prepare` has succeeded.
        """
        self.prepare()
        began()
        workspace = replace(self.workspace, download=False)  # `prepare` has fetched all images
        return run_steps(self.steps, workspace, on, retries=retries, say=say, watch=watch)

    def check(self, end: Progress) -> None:
        """Raise an `UnfinishedError` if steps failed."""
        if end.failed:
            first = next(iter(end.failed.items()))
            raise UnfinishedError(
                f"{len(end.failed)} of {len(end.steps)} steps failed, and {len(end.blocked)} more need them. Finished "
                f"steps are kept in {self.workspace.root}. The first failure: {end.steps[first[0]].title}: {first[1]}"
            )

    def status(self) -> dict[str, Any]:
        """Return the state of every step (finished, running, failed or waiting) and the estimated remaining time."""
        steps, store = self.steps, self.workspace.store
        done = finished(steps, self.workspace)
        pace = speed(steps, self.workspace)
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


def _state(store: Store, step: Step, done: set[str]) -> str:
    if step.address in done:
        return "finished"
    if store.is_held(step.address):
        return "running"
    return "waiting" if store.failure(step.address) is None else "failed"


def dry_run_text(work: Work, rows: int, workers: int) -> str:
    """Return a list of all steps with their estimated times, and a summary for this number of rows."""
    status = work.status()
    lines = [f"{'about':>12}  step"]
    for step in status["steps"]:
        lines.append(f"{'finished' if step['state'] == 'finished' else duration(step['seconds']):>12}  {step['title']}")
    waiting = sum(step["state"] != "finished" for step in status["steps"])
    kinds = Counter(step["address"].partition("-")[0] for step in status["steps"])
    parts = ", ".join(f"{number} {kind} steps" for kind, number in kinds.items()) or "no steps"
    left = duration(status["workers_seconds"] / max(1, workers))
    lines += [
        "",
        f"{rows} rows: {parts}, {waiting} of them to do",
        f"at most about {left} with {max(1, workers)} at a time, {status['source']}",
    ]
    return "\n".join(lines)


def status_text(work: Work) -> str:
    """Return the number of steps in each state, the estimated remaining time, and the running and failed steps."""
    status = work.status()
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
