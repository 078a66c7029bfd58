"""The `reproduce` command: the paper's tables, one or all of them."""

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
    """Reproduce tables and figures of the paper, with the printed values next to the measured ones.

    Every training and evaluation is a step that is done once, kept in --out and shared between tables. After an
    interruption, run the same command again.

    Example: neuralfuse reproduce table12 --scale smoke
    Example: neuralfuse reproduce table12 table3 --scale cpu --data-dir data --rows base=VGG11 --dry-run
    Example: neuralfuse reproduce --status

    Parameters
    ----------
    tables
        table1 to table3, table6 to table26, figure1b, figure5, figure6, figure7, or all. With --status, the default
        is the last run in --out.
    scale
        full (the paper's networks and data), cpu (a quarter of the width, real data), smoke (minutes, on the digits),
        or a TOML file of your own.
    rows
        Only rows with this value, e.g. base=VGG11. Repeat it: several values of a column are alternatives.
    faults
        Fault model of a rate: reference (the paper's fault map), stuck (independent faulty cells), or flip (inverted
        bits).
    seed
        Seed of all trainings.
    known
        Prior record of a table. Rows that it measured are not measured again. Repeat it for several records.
    """
    from neuralfuse.report import table_picture  # noqa: PLC0415
    from neuralfuse.reproduce import TABLES, Job, Request, as_text, read_prior  # noqa: PLC0415
    from neuralfuse.steps import load_scale  # noqa: PLC0415

    workspace = work.workspace(common)
    options = _Options(tuple(tables or ()), scale, tuple(rows or ()), faults, seed, tuple(map(str, known or ())))
    if not tables:
        require(work.status, f"tables must be named: got none. Legal: {', '.join(['all', *TABLES])}.")
        options = _Options.last(work.out)
    request = Request(load_scale(options.scale), options.faults, options.seed, workspace.device)  # type: ignore[arg-type]
    prior = read_prior([Path(path) for path in options.known], request)
    job = Job.of(options.tables, _wanted(options.rows), request, workspace, prior)
    steps = job.work
    if work.show_only(steps, job.count, common):
        return
    end = work.run(
        lambda on, display: steps.run(
            on, retries=work.retries, say=display.say, watch=display.watch, began=lambda: options.keep(work.out)
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
class _Options:
    """The options of a run, kept in its folder for a later --status."""

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
    def last(out: Path) -> _Options:
        from neuralfuse.files import read_json  # noqa: PLC0415

        path = out / _LAST
        require(
            path.exists(),
            f"--out must be the folder of an earlier run: {out} is not. Pass that folder, or name tables.",
        )
        kept = read_json(path, _SCHEMA)
        try:
            return _Options(*(kept[key] for key in ("tables", "scale", "rows", "faults", "seed", "known")))
        except KeyError as error:
            raise FileFormatError(
                f"{path} must not change after it was written: it has no {error}. Name tables."
            ) from error


def _wanted(rows: Sequence[str]) -> dict[str, list[str]]:
    """Return the wanted values by column."""
    wanted: dict[str, list[str]] = {}
    for text in rows:
        column, equals, value = text.partition("=")
        if not equals or not column or not value:
            raise ConfigError(f"--rows must be COLUMN=VALUE, e.g. base=VGG11: got {text!r}.")
        wanted.setdefault(column, []).append(value)
    return wanted
