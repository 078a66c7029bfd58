"""The picture of a plan: accuracy against energy saved, one curve for each protection."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from neuralfuse.files import write_atomically

_COLORS = ("#1f6f8b", "#7a4fa3", "#2f8f5b", "#c77d1a", "#8a5a44", "#4a6fd0")
_GREYS = ("#555555", "#999999", "#bbbbbb")
_PLAIN, _SMALLER = "#b3432b", "black"
_BELOW = 25  # points below the target that are shown


def draw_plan(record: Mapping[str, Any], path: Path) -> None:
    """Draw a plan: mean accuracy with its 95% interval, the worst chip as a faint mark, the choice ringed.

    Args:
        record: From `make_plan`.
        path: Where the picture goes; its suffix decides the format.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    by, target = record["config"]["by"], record["config"]["target"]
    options = record["options"]
    figure, axes = plt.subplots(figsize=(8.4, 5.4), dpi=150, layout="constrained")
    names = list(dict.fromkeys((one["kind"], one["name"]) for one in options))
    colors = {"neuralfuse": cycle(_COLORS), "protected bits": cycle(_GREYS)}
    colors |= {"unprotected": cycle([_PLAIN]), "smaller model": cycle([_SMALLER])}
    for kind, name in names:
        own = sorted(
            (one for one in options if (one["kind"], one["name"]) == (kind, name)), key=lambda one: one["voltage"]
        )
        saved, means = [100 * (1 - one[by]) for one in own], [one["mean"] for one in own]
        color = next(colors[kind])
        low, high = zip(*(one["mean_ci95"] or (one["mean"], one["mean"]) for one in own), strict=True)
        style = {"smaller model": "s", "protected bits": "--^"}.get(kind, "-o")
        label = {"neuralfuse": f"NeuralFuse: {name}", "smaller model": f"{name}, no errors"}.get(kind, name)
        axes.plot(saved, means, style, color=color, markersize=4, linewidth=1.8, label=label)
        errors = [[m - a for m, a in zip(means, low, strict=True)], [b - m for m, b in zip(means, high, strict=True)]]
        axes.errorbar(saved, means, yerr=errors, fmt="none", ecolor=color, elinewidth=1, capsize=2)
        axes.plot(saved, [one["worst"] for one in own], "_", color=color, markersize=7, alpha=0.6)
    axes.axhline(target["accuracy"], color="#444444", linewidth=0.9, linestyle=":", label=f"target: {target['text']}")
    if record["choice"] is not None:
        best = options[record["choice"]]
        axes.plot(
            100 * (1 - best[by]), best["mean"], "o", markersize=14, markerfacecolor="none", markeredgecolor="black",
            markeredgewidth=1.4, label="cheapest that reaches it",
        )  # fmt: skip
    curve = record["config"]["hardware"]["curve"]
    what = "memory of the weights" if by == "weights" else "whole inference"
    axes.set_xlabel(f"energy saved, {what} (% of that at {curve['points'][-1][0]:g} {curve['unit']})", fontsize=9)
    axes.set_ylabel(f"accuracy (%), mean of up to {record['config']['chips']} chips; dash: worst chip", fontsize=9)
    axes.set_title("What each protection saves, at which accuracy", loc="left", fontsize=11, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    best, worst = max(one["mean"] for one in options), min(one["worst"] for one in options)
    axes.set_ylim(max(worst - 2, target["accuracy"] - _BELOW, 0), best + 2)  # what is far below decides nothing
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    write_atomically(path, figure.savefig)
    plt.close(figure)
