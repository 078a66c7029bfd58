"""A comparison as text, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from neuralfuse.compare.best import Difference, best, combinations
from neuralfuse.tables import latex_table, markdown_table, text_table

HEADS = ("method", "needs", "CA", "accuracy on faulty chips", "gain [95% interval]", "energy", "time")
BEST_HEADS = ("rate", "what is changed", "best", "accuracy", "over no protection", "over the best of the lines above")
COMBINATION_HEADS = (
    "rate",
    "combination",
    "accuracy",
    "over the same without the last",
    "over the same without the first",
)


def grids(record: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield (heading, cells with the heads first) of each table: the best methods, combinations, and all methods."""
    of = dict.fromkeys((row["faults"], row["ber"]) for row in record["rows"])
    bests = [line for faults, ber in of for line in best_lines(record, faults, ber)]
    if bests:
        yield "The best by what may be changed, with 95% intervals over the same chips", [list(BEST_HEADS), *bests]
    chains = [line for faults, ber in of for line in combination_lines(record, faults, ber)]
    if chains:
        yield "Combinations, with 95% intervals over the same chips", [list(COMBINATION_HEADS), *chains]
    for faults, ber in of:
        rows = [row for row in record["rows"] if (row["faults"], row["ber"]) == (faults, ber)]
        yield rate(faults, ber), [list(HEADS), *(cells(row, slowdown(record, row)) for row in rows)]


def rate(faults: str, ber: float) -> str:
    """Return a rate with its fault model, as text."""
    return f"{100 * ber:.3g}% {faults}"


def best_lines(record: Mapping[str, Any], faults: str, ber: float) -> Iterator[list[str]]:
    """Yield the cells of the best method at a rate, for each level of access."""
    for one in best(record, faults, ber):
        over = one.above["method"]
        yield [
            rate(faults, ber), one.level, one.row["method"], f"{one.row['measured']['pa']:.1f}", difference(one.gain),
            "-" if over == "none" else f"{difference(one.more)} ({over})",
        ]  # fmt: skip


def combination_lines(record: Mapping[str, Any], faults: str, ber: float) -> Iterator[list[str]]:
    """Yield the cells of each combination of methods at a rate."""
    for one in combinations(record, faults, ber):
        over = ["-" if other is None else f"{difference(other[1])} ({other[0]['method']})" for other in one.over]
        yield [rate(faults, ber), one.row["method"], f"{one.row['measured']['pa']:.1f}", *over]


def difference(found: Difference) -> str:
    """Return a difference in points, with its interval, as text."""
    if found.interval is None:
        return f"{found.points:+.1f}"
    return f"{found.points:+.1f} [{found.interval[0]:+.1f}, {found.interval[1]:+.1f}]"


def slowdown(record: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """Return the time of a row's answers, relative to the plain model's; NaN if the record has none."""
    before = (row["measured"] or {}).get("time", math.nan)  # earlier versions kept it here
    return float(record.get("run", {}).get("timings", {}).get(row["step"], {}).get("time", before))


def cells(row: Mapping[str, Any], slowdown: float) -> list[str]:
    """Return one row's cells."""
    measured = row["measured"]
    access = ", ".join(row["needs"]) or "-"
    if measured is None:
        return [row["method"], access, *["-"] * 5]
    gain = difference(Difference(measured["gain"], measured["gain_ci95"]))
    spread = "" if measured["pa_sd"] is None else f"+-{measured['pa_sd']:.1f}"
    return [
        row["method"], access, f"{measured['ca']:.1f}", f"{measured['pa']:.1f}{spread}",
        "-" if row["method"] == "none" else gain,
        "-" if measured["energy"] is None else f"{100 * measured['energy']:.0f}%",
        "-" if math.isnan(slowdown) else f"{slowdown:.2g}x",
    ]  # fmt: skip


def as_text(record: Mapping[str, Any]) -> str:
    """Return a comparison as aligned text."""
    tables = [f"{title}\n{text_table(heads, rows)}" for title, (heads, *rows) in grids(record)]
    return "\n\n".join([heading(record), *tables, *notes(record)])


def as_markdown(record: Mapping[str, Any]) -> list[str]:
    """Return a comparison as lines of Markdown, with one table per rate."""
    tables = ([f"**{title}**", "", *markdown_table(heads, rows), ""] for title, (heads, *rows) in grids(record))
    return [line for table in tables for line in table]


def as_latex(record: Mapping[str, Any]) -> str:
    """Return a comparison as LaTeX tables (package booktabs)."""
    name = record["config"]["base"]
    return "\n".join(latex_table(f"{name}, {title}", heads, rows) for title, (heads, *rows) in grids(record))


def heading(record: Mapping[str, Any]) -> str:
    """Return one line with the model, the data, the chips and the rate that methods prepared for."""
    config, data = record["config"], record["data"]
    where = "" if data is None else f" on {data['name']}"
    return (
        f"{config['base']}{where}, {config['chips']} unseen chips, methods prepared for {100 * config['train_rate']:g}%"
    )


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return explanations of the columns, and the number of rows that are not measured yet."""
    lines = [
        "energy: of weight accesses at the rate's voltage, relative to the plain model at full voltage; gain: over no "
        "protection, on the same chips; time: to answer 100 images, relative to the plain model, timed in alternation "
        "(the time of none should be 1x: its deviation shows the error of the timings)"
    ]
    waiting = sum(row["measured"] is None for row in record["rows"])
    return lines + ([f"{waiting} of {len(record['rows'])} rows are not measured yet"] if waiting else [])
