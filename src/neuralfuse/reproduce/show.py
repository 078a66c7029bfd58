"""Tables as text and as Markdown: measured values, with the paper's values in brackets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuralfuse.quant import Scheme
from neuralfuse.tables import markdown_table, text_table

_HEADS = {
    "ca": "CA", "pa": "PA", "ca_nf": "CA(NF)", "pa_nf": "PA(NF)", "rp": "RP", "energy_saving": "energy saved %",
    "mac_energy_saving": "energy saved by MACs %", "efficiency_ratio": "RP per million parameters", "twma": "T.W.M.A.",
    "params": "parameters", "macs": "MACs", "latency_ms": "ms", "added_ms": "added ms",
}  # fmt: skip
_KEYS = {"ber": "bit errors", "train_ber": "trained at", "k_bits": "K", "n": "N", "lambda": "lambda"}
_SPREAD = {"pa": "pa_std", "pa_nf": "pa_nf_std"}
_WHOLE = {"params", "macs", "twma"}


def grid(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a table record as cells, the heads first. If any row is measured, rows that are not are left out."""
    rows = [row for row in record["rows"] if row["measured"] is not None] or record["rows"]
    rows = [{**row, "measured": with_timings(record, row)} for row in rows]
    names = [name for name in _HEADS if any(name in (row["measured"] or row["published"] or {}) for row in rows)]
    if "efficiency_ratio" in names:
        names = ["rp", "efficiency_ratio"]
    accuracies = "pa_nf" in names
    of = list(rows[0]["of"]) if rows else []
    heads = [_KEYS.get(key, key) for key in of] + [_HEADS[name] for name in names] + (["chips"] if accuracies else [])
    lines = []
    for row in rows:
        measured, printed = row["measured"] or {}, row["published"] or {}
        cells = [_key(key, row["of"].get(key)) for key in of]
        cells += [_cell(name, measured, printed) for name in names]
        if accuracies:
            cells.append(str(measured.get("chips", "-")))
        if row["misprint"]:
            cells[-1] += " *"
        lines.append(cells)
    return [heads, *lines]


def with_timings(record: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row's measured values, with the times that the record keeps under ``run``."""
    if row["measured"] is None:
        return None
    return {**row["measured"], **record.get("run", {}).get("timings", {}).get(row["step"], {})}


def as_text(record: Mapping[str, Any]) -> str:
    """Return a table record as aligned text."""
    heads, *rows = grid(record)
    return "\n".join([heading(record), "", text_table(heads, rows, align="right"), "", *notes(record)])


def as_markdown(record: Mapping[str, Any]) -> list[str]:
    """Return a table record as lines of Markdown, without its heading."""
    heads, *rows = grid(record)
    return markdown_table(heads, rows)


def heading(record: Mapping[str, Any]) -> str:
    """Return a table's number and title, its scale and its fault model."""
    config = record["config"]
    name = record["table"].replace("table", "Table ").replace("figure", "Figure ")
    return f"{name}. {record['title']}\nscale {config['scale']} ({config['scale_title']}), faults: {config['faults']}"


def notes(record: Mapping[str, Any]) -> list[str]:
    """Return notes for readers of the table."""
    rows, config = record["rows"], record["config"]
    waiting = sum(row["measured"] is None for row in rows)
    comparable = bool(rows) and rows[0]["published"] is not None
    lines = ["in brackets: the paper" if comparable else "the paper did not measure this kind of errors"]
    for name, data in record["data"].items():
        if "files" in data:
            lines.append(f"{name} was read from {', '.join(data['files'])} files, which are not the original images")
    factor = config["rate_factor"]
    if factor != 1 and record["steps"]:
        lines.append(f"all rates are {factor:g} times the paper's, because small networks have few cells to fail")
    steps = record["steps"].values()
    if any("start" in step or step.get("eopm", {}).get("class_head") for step in steps):
        lines.append("generators were also taught the classes (the paper's were not)")
    if any("rounding" in step for step in steps):
        lines.append(
            "weights of fewer than 8 bits are rounded to nearest (the paper's text says down, its figures disagree)"
        )
    elif any(step.get("bits", Scheme.bits) < Scheme.bits for step in steps):
        lines.append("weights of fewer than 8 bits are rounded down (later versions round to nearest)")
    lines += _precision(record)
    if waiting:
        lines.append(f"{waiting} of {len(rows)} rows are not measured yet")
    shown = [row for row in rows if waiting == len(rows) or row["measured"] is not None]
    for note in dict.fromkeys(row["misprint"] for row in shown if row["misprint"]):
        lines.append(f"* {note}")
    return lines


def _precision(record: Mapping[str, Any]) -> list[str]:
    """Return the largest half-width of the intervals of PA(NF), and the number of rows that miss the scale's width."""
    measured = (row["measured"] or {} for row in record["rows"])
    halves = [(ci[1] - ci[0]) / 2 for ci in (values.get("pa_nf_ci95") for values in measured) if ci]
    if not halves:
        return []
    wanted = min((step["until"] / 2 for step in record["steps"].values() if step.get("until")), default=max(halves))
    missed = sum(half > wanted for half in halves)
    wider = f", but {missed} of {len(halves)} rows miss the scale's +-{wanted:g} even with all chips"
    return [f"95% intervals of PA(NF) are up to +-{max(halves):.1f} points{wider if missed else ''}"]


def _key(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("ber", "train_ber"):
        return f"{100 * value:.3g}%"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(name: str, measured: Mapping[str, Any], printed: Mapping[str, Any]) -> str:
    own, spread = _number(name, measured.get(name)), _SPREAD.get(name)
    if spread and measured.get(spread) is not None:
        own += f"+-{measured[spread]:.1f}"
    interval = measured.get(f"{name}_ci95")
    if name == "rp" and interval:
        own += f" [{interval[0]:+.1f}, {interval[1]:+.1f}]"
    if name not in printed:
        return own
    theirs = _number(name, printed[name], exact=True)
    if spread and printed.get(spread) is not None:
        theirs += f"+-{printed[spread]}"
    return f"{own} ({theirs})"


def _number(name: str, value: Any, *, exact: bool = False) -> str:
    if value is None:
        return "-"
    if name in _WHOLE:
        return f"{value:,.0f}"
    if exact:
        return str(value)
    return f"{value:{'+.1f' if name == 'rp' else '.2f' if name.endswith('_ms') else '.1f'}}"
