"""The `reproduce` command: the paper's tables, one after the other or all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from neuralfuse.cli.common import Common
from neuralfuse.cli.work import WorkOptions
from neuralfuse.errors import ConfigError, FileFormatError, require

_FLAT = Parameter(name="*")
_COMMON, _WORK = Common(), WorkOptions()
_LAST, _SCHEMA = "last.json", "neuralfuse/asked/1"


def reproduce(
    tables: list[str] | None = None,
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
    Example: neuralfuse reproduce --status

    Parameters
    ----------
    tables
        table1 to table3, table6 to table26, figure1b, figure5, figure6, figure7, or all. With --status they may be
        left out: what was last begun in --out.
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
    from neuralfuse.report import table_picture  # noqa: PLC0415
    from neuralfuse.reproduce import TABLES, Job, Request, as_text, read_prior  # noqa: PLC0415
    from neuralfuse.steps import load_scale  # noqa: PLC0415

    workspace = work.workspace(common)
    asked = _Asked(tuple(tables or ()), scale, tuple(rows or ()), faults, seed, tuple(map(str, known or ())))
    if not tables:
        require(work.status, f"tables must be named: got none. Legal: {', '.join(['all', *TABLES])}.")
        asked = _Asked.last(work.out)
    request = Request(load_scale(asked.scale), asked.faults, asked.seed, workspace.device)  # type: ignore[arg-type]
    from_elsewhere = read_prior([Path(path) for path in asked.known], request)
    job = Job.of(asked.tables, _wanted(asked.rows), request, workspace, from_elsewhere)
    steps = job.work
    if work.show_only(steps, job.count, common):
        return
    end = work.run(
        lambda on, display: steps.run(
            on, retries=work.retries, say=display.say, watch=display.watch, began=lambda: asked.keep(work.out)
        ),
        workspace, common,
    )  # fmt: skip
    records = job.write()
    for record in records:
        picture = table_picture(record)
        if picture is not None:
            picture.save(job.path(record["table"]).with_suffix(".png"))
    steps.check(end)
    text = "\n\n".join(as_text(record) for record in records)
    wrote = ", ".join(job.path(record["table"]).name for record in records)
    common.show({"tables": records}, f"{text}\n\nWrote {wrote} to {work.out}.")


@dataclass(frozen=True)
class _Asked:
    """What a run was asked for, kept in its folder for whoever asks how far it is."""

    tables: Sequence[str]
    scale: str
    rows: Sequence[str]
    faults: str
    seed: int
    known: Sequence[str]

    def keep(self, out: Path) -> None:
        from neuralfuse.files import write_json  # noqa: PLC0415

        scale = str(Path(self.scale).absolute()) if self.scale.endswith(".toml") else self.scale
        known = [str(Path(path).absolute()) for path in self.known]
        write_json(out / _LAST, {"schema": _SCHEMA, **asdict(self), "scale": scale, "known": known})

    @staticmethod
    def last(out: Path) -> _Asked:
        from neuralfuse.files import read_json  # noqa: PLC0415

        path = out / _LAST
        require(
            path.exists(), f"--out must be a folder that tables were begun in: {out} is none. Pass it, or name tables."
        )
        kept = read_json(path, _SCHEMA)
        try:
            return _Asked(*(kept[key] for key in ("tables", "scale", "rows", "faults", "seed", "known")))
        except KeyError as error:
            raise FileFormatError(f"{path} must be as it was written: it has no {error}. Name tables.") from error


def _wanted(rows: Sequence[str]) -> dict[str, list[str]]:
    """Return the values wanted of each column."""
    wanted: dict[str, list[str]] = {}
    for text in rows:
        column, equals, value = text.partition("=")
        if not equals or not column or not value:
            raise ConfigError(f"--rows must be COLUMN=VALUE, e.g. base=VGG11: got {text!r}.")
        wanted.setdefault(column, []).append(value)
    return wanted
