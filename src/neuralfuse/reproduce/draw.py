"""The paper's plots, from the same records as its tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuralfuse.files import write_atomically

_COLORS = {"ResNet18": "#1f6f8b", "ResNet50": "#7a4fa3", "VGG11": "#2f8f5b", "VGG16": "#c77d1a", "VGG19": "#b3432b"}
_MARKS = {"ConvL": "o", "ConvS": "s", "DeConvL": "^", "DeConvS": "v", "UNetL": "D", "UNetS": "P"}


def draw(record: Mapping[str, Any], path: Path) -> bool:
    """Draw a figure's record; return whether there was anything to draw.

    Args:
        record: From `table_record`.
        path: Where the picture goes; its suffix decides the format.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    rows = [row for row in record["rows"] if row["measured"] is not None]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(7.6, 4.8), dpi=150, layout="constrained")
    (_by_number if "n" in rows[0]["of"] else _trade_off)(axes, rows)
    config = record["config"]
    setting = f"scale {config['scale']}, faults: {config['faults']}"
    axes.set_title(f"{record['title']}\n{setting}", loc="left", fontsize=8.5, weight="bold")
    axes.set_ylabel("PA(NF) (%), mean and 95% interval over chips", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    write_atomically(path, figure.savefig)
    plt.close(figure)
    return True


def _trade_off(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    several = len({row["of"]["base"] for row in rows}) > 1
    for row in rows:
        base, generator, measured = row["of"]["base"], row["of"]["generator"], row["measured"]
        color = _COLORS[base]
        low, high = measured["pa_nf_ci95"] or (measured["pa_nf"], measured["pa_nf"])
        errors = [[measured["pa_nf"] - low], [high - measured["pa_nf"]]]
        axes.errorbar(
            measured["energy_saving"], measured["pa_nf"], yerr=errors, fmt=_MARKS[generator], color=color, markersize=6,
            elinewidth=1, capsize=2,
        )  # fmt: skip
        if row["published"] is not None:
            if row["misprint"]:
                place = (row["published"]["energy_saving"], row["published"]["pa_nf"])
                axes.annotate("*", place, xytext=(4, 1), textcoords="offset points", color=color, fontsize=11)
            axes.plot(
                row["published"]["energy_saving"], row["published"]["pa_nf"], _MARKS[generator], markersize=6,
                markerfacecolor="none", markeredgecolor=color, alpha=0.6,
            )  # fmt: skip
    for generator, mark in _MARKS.items():
        axes.plot([], [], mark, color="#444444", label=generator)
    for base in dict.fromkeys(row["of"]["base"] for row in rows):
        pa = next(row["measured"]["pa"] for row in rows if row["of"]["base"] == base)
        label = f"{base}, PA without" if several else "PA without"
        axes.axhline(pa, color=_COLORS[base], linewidth=0.9, linestyle=":", label=label)
    if rows[0]["published"] is not None:
        doubt = " (* misprint)" if any(row["misprint"] for row in rows) else ""
        axes.plot([], [], "o", markerfacecolor="none", markeredgecolor="#444444", label=f"hollow: the paper{doubt}")
    if min(row["measured"]["energy_saving"] for row in rows) < -100:  # generators larger than the base model
        axes.set_xscale("symlog", linthresh=100)
    axes.set_xlabel("energy of the weights' memory saved (%), at the voltage of 1% bit errors", fontsize=9)


def _by_number(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: row["of"]["n"])
    numbers = [row["of"]["n"] for row in rows]
    means = [row["measured"]["pa_nf"] for row in rows]
    bounds = [row["measured"]["pa_nf_ci95"] or (mean, mean) for row, mean in zip(rows, means, strict=True)]
    low, high = zip(*bounds, strict=True)
    axes.fill_between(numbers, low, high, color="#1f6f8b", alpha=0.18, linewidth=0)
    axes.plot(numbers, means, "-o", color="#1f6f8b", label="PA(NF)")
    axes.plot(numbers, [row["measured"]["ca_nf"] for row in rows], "--", color="#1f6f8b", label="CA(NF)")
    axes.plot(numbers, [row["measured"]["pa"] for row in rows], ":", color="#b3432b", label="PA without")
    axes.set_xscale("log")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("perturbed models a step, N", fontsize=9)
