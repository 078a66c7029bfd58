"""Options of commands that run steps, and the display of their progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from neuralfuse.cli.common import Common, say
from neuralfuse.errors import require

if TYPE_CHECKING:
    from neuralfuse.steps import Progress, Work, Workspace
    from neuralfuse.steps.engines import Engine

Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """Options of commands that run steps.

    Attributes:
        data_dir: Folder of the data sets: CIFAR and GTSRB in the layout of torchvision, or class folders NAME/train and
            NAME/test.
        download: Let torchvision download missing data sets into --data-dir.
        out: Folder for steps, records and pictures.
        workers: Number of worker processes; by default one per GPU, or one per --threads cores. 0 runs one step after
            the other in this process.
        scheduler: Address of a Dask scheduler whose workers run the steps. All of them must share the folder --out.
        retries: Number of retries of a failed step.
        dry_run: List the steps with their estimated times, but run none.
        status: Show the progress of a run with the same options.
    """

    data_dir: Path | None = None
    download: bool = False
    out: Path = Path("reproduce")
    workers: int | None = None
    scheduler: str | None = None
    retries: int = 1
    dry_run: bool = False
    status: bool = False

    def workspace(self, common: Common) -> Workspace:
        """Return the workspace of the steps."""
        from neuralfuse.steps import ANY_DEVICE, Workspace  # noqa: PLC0415

        require(self.retries >= 0, f"retries must be at least 0: got retries={self.retries}.")
        require(self.workers is None or self.workers >= 0, f"workers must be at least 0: got workers={self.workers}.")
        # the workers of a cluster have their own devices
        device = str(common.set_up()) if self.scheduler is None else common.device or ANY_DEVICE
        return Workspace(
            self.out.absolute(), None if self.data_dir is None else self.data_dir.absolute(), device, self.download
        )

    def show_only(self, work: Work, rows: int, common: Common) -> bool:
        """Show the status or the list of steps, if --status or --dry-run was given. Return whether one was."""
        from neuralfuse.steps import dry_run_text, status_text  # noqa: PLC0415

        if self.status:
            common.show(work.status(), status_text(work))
        elif self.dry_run:
            workers = 1 if self.scheduler else self._workers(work.workspace, common)  # a cluster's number may change
            common.show(work.status(), dry_run_text(work, rows, workers))
        return self.status or self.dry_run

    def run(self, do: Callable[[Engine, Display], Out], workspace: Workspace, common: Common) -> Out:
        """Call ``do`` with the engine and a display of its progress; return its result."""
        from neuralfuse.steps import engine  # noqa: PLC0415

        workers, threads = self._workers(workspace, common), common.threads or 1
        with engine(workers=workers, threads=threads, scheduler=self.scheduler) as on, Display(workspace) as display:
            return do(on, display)

    def _workers(self, workspace: Workspace, common: Common) -> int:
        return _usual_workers(workspace.device, common.threads or 1) if self.workers is None else self.workers


def _usual_workers(device: str, threads: int) -> int:
    """Return the default number of worker processes on this machine."""
    import torch  # noqa: PLC0415

    if device == "cuda":
        return max(1, torch.cuda.device_count())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device.startswith("cuda") else max(1, cores // threads)


class Display:
    """Shows lines on standard error and, on a terminal, one progress bar for all steps and one per running step."""

    def __init__(self, workspace: Workspace) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self.workspace = workspace
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
            self._tasks[""] = self._bars.add_task("all steps")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        if self._bars is None:
            say(line)
        else:
            self._bars.console.print(line, highlight=False, markup=False)
        sys.stderr.flush()

    def watch(self, progress: Progress) -> None:
        """Update the progress bars."""
        if self._bars is None:
            return
        self._bars.update(self._tasks[""], completed=len(progress.finished), total=len(progress.steps))
        for name in [name for name in self._tasks if name and name not in progress.running]:
            self._bars.remove_task(self._tasks.pop(name))
        for name in progress.running:
            note = self.workspace.store.progress(name)
            if note and time.time() - note["time"] < 60:  # older notes are from an interrupted run
                if name not in self._tasks:
                    self._tasks[name] = self._bars.add_task(progress.steps[name].title[:60])
                self._bars.update(self._tasks[name], completed=note["done"], total=note["total"])
