"""The `reproduce` command: the paper's tables, one after the other or all at once."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from neuralfuse.cli.common import Common, say
from neuralfuse.errors import ConfigError, require

if TYPE_CHECKING:
    from neuralfuse.reproduce import Place, Progress

_FLAT = Parameter(name="*")
_COMMON = Common()


def reproduce(
    tables: list[str],
    /,
    *,
    scale: str = "full",
    rows: list[str] | None = None,
    faults: str = "reference",
    seed: int = 0,
    data_dir: Path | None = None,
    download: bool = False,
    out: Path = Path("reproduce"),
    workers: int | None = None,
    scheduler: str | None = None,
    retries: int = 1,
    dry_run: bool = False,
    status: bool = False,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Make tables and figures of the paper anew, with its printed values beside what is measured.

    Every training and evaluation is a step that is done once and kept in --out, shared between tables; the same command
    goes on after any interruption.

    Example: neuralfuse reproduce table12 --scale smoke
    Example: neuralfuse reproduce table12 table3 --scale cpu --data-dir data --rows base=VGG11 --dry-run

    Parameters
    ----------
    tables
        table1 to table3, table6 to table26, figure1b, figure5, figure6, figure7, or all.
    scale
        full (the paper's networks and data), cpu (a quarter of the width, real data), smoke (minutes, on the digits),
        or a TOML file of your own.
    rows
        Only rows with this value, e.g. base=VGG11. Repeat it: several values of a column are alternatives.
    faults
        What a rate means: reference (the paper's fault map), stuck (independent faulty cells), or flip (inverted bits).
    seed
        Seed of all trainings.
    data_dir
        Where the data sets lie: CIFAR and GTSRB as torchvision keeps them, or class folders NAME/train, NAME/test.
    download
        Let torchvision download what is missing into --data-dir.
    out
        Folder for steps, records and pictures.
    workers
        Worker processes; by default one for each GPU, or for each --threads cores. 0: one step after the other, here.
    scheduler
        Address of a Dask scheduler, whose workers do the steps; --out must be a folder that all of them see.
    retries
        How often a step that fails is tried again.
    dry_run
        List the steps and about how long they take, and run none.
    status
        Say how far a run with the same options is.
    """
    from neuralfuse.reproduce import ANY_DEVICE, Job, Place, Request, as_text, engine, load_scale, outline, standing  # noqa: PLC0415

    require(retries >= 0, f"retries must be at least 0: got retries={retries}.")
    require(workers is None or workers >= 0, f"workers must be at least 0: got workers={workers}.")
    # the workers of a cluster have their own devices
    device = str(common.set_up()) if scheduler is None else common.device or ANY_DEVICE
    root, images = out.absolute(), None if data_dir is None else data_dir.absolute()
    place = Place(root, images, device, download)
    request = Request(load_scale(scale), faults, seed, device)  # type: ignore[arg-type]
    job = Job.of(tables, _wanted(rows or []), request, place)
    threads = common.threads or 1
    hands = _usual_workers(device, threads) if workers is None else workers
    if dry_run or status:
        common.show(job.status(), standing(job) if status else outline(job, hands))
        return
    with engine(workers=hands, threads=threads, scheduler=scheduler) as on, _Display(place) as display:
        records = job.run(on, retries=retries, say=display.say, watch=display.watch)
    text = "\n\n".join(as_text(record) for record in records)
    wrote = ", ".join(job.path(record["table"]).name for record in records)
    common.show({"tables": records}, f"{text}\n\nWrote {wrote} to {out}.")


def _wanted(rows: list[str]) -> dict[str, list[str]]:
    """Return the values wanted of each column."""
    wanted: dict[str, list[str]] = {}
    for text in rows:
        column, equals, value = text.partition("=")
        if not equals or not column or not value:
            raise ConfigError(f"--rows must be COLUMN=VALUE, e.g. base=VGG11: got {text!r}.")
        wanted.setdefault(column, []).append(value)
    return wanted


def _usual_workers(device: str, threads: int) -> int:
    import torch  # noqa: PLC0415

    if device == "cuda":
        return max(1, torch.cuda.device_count())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device.startswith("cuda") else max(1, cores // threads)


class _Display:
    """Lines on standard error, and on a terminal a bar for all steps and one for each that runs."""

    def __init__(self, place: Place) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self.place = place
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Display:
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
