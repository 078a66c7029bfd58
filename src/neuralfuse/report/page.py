"""A report: one HTML page that needs no other file, and the same tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from neuralfuse.blackbox import answers_text, choice_text, tuning_text
from neuralfuse.compare import as_latex as comparison_latex
from neuralfuse.compare import as_markdown as comparison_markdown
from neuralfuse.compare.show import grids
from neuralfuse.compare.show import heading as comparison_heading
from neuralfuse.compare.show import notes as comparison_notes
from neuralfuse.errors import FileFormatError
from neuralfuse.evaluation import evaluation_text
from neuralfuse.files import write_text
from neuralfuse.plan import plan_text
from neuralfuse.report import compared, figures
from neuralfuse.report.figures import Figure
from neuralfuse.report.pictures import plan_picture, table_picture
from neuralfuse.report.records import Found, collect, of_kind
from neuralfuse.report.svg import LIGHT
from neuralfuse.reproduce import as_markdown as table_markdown
from neuralfuse.reproduce.show import grid, heading, notes
from neuralfuse.tables import latex_table


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What the cell says.
        deviation: The measured value minus the published one, in points; None without a published value.
    """

    text: str
    deviation: float | None = None

    @property
    def tint(self) -> str:
        """The CSS class of the cell's colour; empty for no colour."""
        if self.deviation is None:
            return ""
        size = 0 if abs(self.deviation) < 2 else 1 if abs(self.deviation) < 10 else 2
        return f"{'up' if self.deviation > 0 else 'down'}{size}" if size else "same"


@dataclass(frozen=True)
class Table:
    """A table of a section.

    Attributes:
        title: The heading; empty for none.
        heads: The text above each column.
        rows: Cells, as many per row as there are columns.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def tinted(self) -> bool:
        """Whether colours show the distance to published values."""
        return any(cell.tint for row in self.rows for cell in row)

    @property
    def sides(self) -> list[str]:
        """The CSS class of each column. Words are aligned to the left, numbers to the right."""
        columns = zip(*self.rows, strict=True)
        return ["said" if any(cell.text[:1].isalpha() for cell in column) else "" for column in columns]


@dataclass(frozen=True)
class Section:
    """One record on the page.

    Attributes:
        title: The heading.
        subtitle: A line below the heading.
        found: The record.
        tables: Tables made from it.
        figures: Pictures drawn from it.
        notes: Sentences below the tables.
        gallery: Images, what is added to them, and their sum.
        text: The record as text, as a command prints it.
        command: The command that made the record; empty if unknown.
    """

    title: str
    subtitle: str
    found: Found
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    gallery: Sequence[Mapping[str, Any]] = ()
    text: str = ""
    command: str = ""


@dataclass(frozen=True)
class Report:
    """All records of a folder, as sections.

    Attributes:
        title: The heading of the page.
        sections: One per record, in the order of the page.
        across: Figures that are drawn from several records.
        damaged: Files that are not complete JSON. The page does not show them.
    """

    title: str
    sections: Sequence[Section]
    across: Sequence[Figure] = field(default=())
    damaged: Sequence[Path] = field(default=())

    @staticmethod
    def of(folder: Path, title: str) -> Report:
        """Return the report on all records below a folder. See `collect` for the errors."""
        found, damaged = collect(folder)
        sections = [_section(one) for one in found]
        evaluations = list(of_kind(found, "evaluation"))
        with _as_written_now(*evaluations):
            across = list(figures.evaluation_charts(evaluations))
        return Report(title, sections, across, damaged)

    def html(self) -> str:
        """Return the page as HTML."""
        from jinja2 import Environment  # noqa: PLC0415

        source = resources.files("neuralfuse.report").joinpath("page.html").read_text(encoding="utf-8")
        template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
        return template.render(report=self, light=LIGHT)

    def write(self, path: Path) -> list[Path]:
        """Write the page, and beside it the tables as Markdown and LaTeX. Return the files."""
        files = {path: self.html(), path.with_suffix(".md"): self.markdown(), path.with_suffix(".tex"): self.latex()}
        for file, text in files.items():
            write_text(file, text)
        return list(files)

    def markdown(self) -> str:
        """Return all tables as Markdown."""
        lines = [f"# {self.title}", ""]
        for section in self.sections:
            lines += [f"## {section.title}", "", section.subtitle, ""]
            if section.found.kind == "table":
                lines += [*table_markdown(section.found.record), "", *section.notes, ""]
            elif section.found.kind == "comparison":
                lines += [*comparison_markdown(section.found.record), *section.notes, ""]
            elif section.text:
                lines += ["```", section.text, "```", ""]
        return "\n".join(lines)

    def latex(self) -> str:
        """Return all tables as LaTeX, which needs the package booktabs."""
        parts = []
        for section in self.sections:
            if section.found.kind == "comparison":
                parts.append(comparison_latex(section.found.record))
            elif section.found.kind == "table":
                heads, *rows = grid(section.found.record)
                parts.append(latex_table(section.title, heads, rows))
        return "\n".join(parts)


def _section(found: Found) -> Section:
    with _as_written_now(found):
        return replace(_SECTIONS[found.kind](found), command=found.command)


@contextmanager
def _as_written_now(*found: Found) -> Iterator[None]:
    """Raise a `FileFormatError` if records lack something that this version writes."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        names = " and ".join(str(one.path) for one in found)
        raise FileFormatError(
            f"{names} must be as this version writes records: {error!r}. Make it again, or move it elsewhere."
        ) from error


def _table(found: Found) -> Section:
    record = found.record
    title, subtitle = heading(record).split("\n")
    heads, *lines = grid(record)
    shown = [row for row in record["rows"] if row["measured"] is not None] or record["rows"]
    rows = [list(_cells(heads, line, row)) for line, row in zip(lines, shown, strict=True)]
    picture = table_picture(record)
    drawn = [*figures.transfer_chart(found), *([] if picture is None else [Figure.of(picture, found)])]
    return Section(title, subtitle, found, [Table("", heads, rows)], drawn, notes(record))


_COLUMNS = {
    "CA": "ca", "PA": "pa", "CA(NF)": "ca_nf", "PA(NF)": "pa_nf", "RP": "rp", "energy saved %": "energy_saving",
    "energy saved by MACs %": "mac_energy_saving",
}  # fmt: skip


def _cells(heads: Sequence[str], line: Sequence[str], row: Mapping[str, Any]) -> Iterator[Cell]:
    measured, printed = row["measured"] or {}, row["published"] or {}
    for head, text in zip(heads, line, strict=True):
        name = _COLUMNS.get(head)
        both = name in measured and name in printed
        yield Cell(text, measured[name] - printed[name] if both else None)


def _comparison(found: Found) -> Section:
    record = found.record
    tables = [
        Table(title, heads, [[Cell(text) for text in row] for row in rows]) for title, (heads, *rows) in grids(record)
    ]
    drawn = [*compared.methods_chart(found), *compared.rates_chart(found), *compared.energy_chart(found)]
    config = record["config"]
    subtitle = f"{comparison_heading(record)}; scale {config['scale']} ({config['scale_title']})"
    return Section("Methods side by side", subtitle, found, tables, drawn, comparison_notes(record))


def _evaluation(found: Found) -> Section:
    config = found.record["config"]
    fuse = config["fuse"]
    behind = "without NeuralFuse" if fuse is None else f"behind {fuse.get('generator', 'NeuralFuse')}"
    title = f"{config['base']['name']} on {config['data']['name']}, {behind}"
    rate = f"{100 * found.record['ber']:.3g}% {found.record['ber_kind']}"
    rate += ", the generator in faulty memory too" * ("generator_memory" in config)
    return Section(title, rate, found, text=evaluation_text(found.record))


def _portrait(found: Found) -> Section:
    config = found.record["config"]
    title = f"{config['fuse']['generator']} before {config['base']['name']} on {config['data']['name']}"
    subtitle = f"{100 * config['ber']:.3g}% {config['faults']['kind']}, {config['chips']} unseen chips"
    drawn = [figures.classes_chart(found), figures.outputs_chart(found), figures.weights_chart(found)]
    return Section(title, subtitle, found, (), drawn, gallery=found.record["gallery"])


def _plan(found: Found) -> Section:
    drawn = [Figure.of(plan_picture(found.record), found)]
    return Section("A plan", "which voltage, which protection", found, (), drawn, text=plan_text(found.record))


def _black_box(found: Found) -> Section:
    config = found.record["config"]
    behind = "without NeuralFuse" if config["fuse"] is None else f"behind {config['fuse']['generator']}"
    return Section(f"A black-box model, {behind}", config["box"], found, text=answers_text(found.record))


def _choice(found: Found) -> Section:
    return Section("Chosen for a black-box model", found.record["config"]["box"], found, text=choice_text(found.record))


def _tuning(found: Found) -> Section:
    return Section("Tuned for a black-box model", found.record["config"]["box"], found, text=tuning_text(found.record))


_SECTIONS = {
    "table": _table, "comparison": _comparison, "evaluation": _evaluation, "portrait": _portrait, "plan": _plan,
    "black-box": _black_box, "choice": _choice, "tuning": _tuning,
}  # fmt: skip
