"""What commands share that do steps: who does them, and what is seen of it."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from neuralfuse.cli.common import say

if TYPE_CHECKING:
    from neuralfuse.reproduce import Place, Progress


def usual_workers(device: str, threads: int) -> int:
    """Return how many worker processes suit this machine."""
    import torch  # noqa: PLC0415

    if device == "cuda":
        return max(1, torch.cuda.device_count())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device.startswith("cuda") else max(1, cores // threads)


class Display:
    """Lines on standard error, and on a terminal a bar for all steps and one for each that runs."""

    def __init__(self, place: Place) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self.place = place
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
        """Show a line."""
        if self._bars is None:
            say(line)
        else:
            self._bars.console.print(line, highlight=False, markup=False)
        sys.stderr.flush()

    def watch(self, progress: Progress) -> None:
        """Show where every running step is."""
        if self._bars is None:
            return
        self._bars.update(self._tasks[""], completed=len(progress.finished), total=len(progress.steps))
        for name in [name for name in self._tasks if name and name not in progress.running]:
            self._bars.remove_task(self._tasks.pop(name))
        for name in progress.running:
            note = self.place.store.progress(name)
            if note and time.time() - note["time"] < 60:  # older ones are of an interrupted run
                if name not in self._tasks:
                    self._tasks[name] = self._bars.add_task(progress.steps[name].title[:60])
                self._bars.update(self._tasks[name], completed=note["done"], total=note["total"])
