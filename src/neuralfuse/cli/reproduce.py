"""The `reproduce` command: the paper's tables, one after the other or all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neuralfuse.cli.common import Common
from neuralfuse.cli.work import WorkOptions
from neuralfuse.errors import ConfigError

_FLAT = Parameter(name="*")
_COMMON, _WORK = Common(), WorkOptions()


def reproduce(
    tables: list[str],
    /,
    *,
    scale: str = "full",
    rows: list[str] | None = None,
    faults: str = "reference",
    seed: int = 0,
    known: list[Path] | None = None,
    work: Annotated[WorkOptions, _FLAT] = _WORK,
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
    known
        Record of a table from elsewhere. What it measured is taken over and not measured again. Repeat it for others.
    """
    from neuralfuse.reproduce import Job, Request, as_text, load_scale, read_known  # noqa: PLC0415

    place = work.place(common)
    request = Request(load_scale(scale), faults, seed, place.device)  # type: ignore[arg-type]
    job = Job.of(tables, _wanted(rows or []), request, place, read_known(known or [], request))
    if work.show_only(job.work, job.count, common):
        return
    records = work.run(
        lambda on, display: job.run(on, retries=work.retries, say=display.say, watch=display.watch), place, common
    )
    text = "\n\n".join(as_text(record) for record in records)
    wrote = ", ".join(job.path(record["table"]).name for record in records)
    common.show({"tables": records}, f"{text}\n\nWrote {wrote} to {work.out}.")


def _wanted(rows: list[str]) -> dict[str, list[str]]:
    """Return the values wanted of each column."""
    wanted: dict[str, list[str]] = {}
    for text in rows:
        column, equals, value = text.partition("=")
        if not equals or not column or not value:
            raise ConfigError(f"--rows must be COLUMN=VALUE, e.g. base=VGG11: got {text!r}.")
        wanted.setdefault(column, []).append(value)
    return wanted
