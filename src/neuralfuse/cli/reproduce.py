"""The `reproduce` command: the paper's tables, one after the other or all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neuralfuse.cli.common import Common
from neuralfuse.cli.work import Display, usual_workers
from neuralfuse.errors import ConfigError, require

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
    hands = usual_workers(device, threads) if workers is None else workers
    if dry_run or status:
        work = job.work
        common.show(work.status(), standing(work) if status else outline(work, job.count, hands))
        return
    with engine(workers=hands, threads=threads, scheduler=scheduler) as on, Display(place) as display:
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
