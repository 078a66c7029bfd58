"""The figures of a report, each from records alone: SVG, what it shows in words, where its numbers are from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralfuse.report.records import Found
from neuralfuse.report.svg import GRID, MUTED, SERIES, chart, inline


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        title: Its heading.
        svg: The picture, for the inside of a page.
        caption: What it shows.
        sources: The records that it was drawn from.
    """

    title: str
    svg: str
    caption: str
    sources: tuple[Found, ...]


_MARKS = "osv^D<>phdP*X"
"""Of classes: a class has a mark and a colour."""


def bands_chart(found: Sequence[Found]) -> Iterator[Figure]:
    """Yield accuracy against the rate, with and without NeuralFuse, for evaluations of the same at several rates."""
    groups: dict[str, list[Found]] = {}
    for one in found:
        config = {name: value for name, value in one.record["config"].items() if name not in ("faults", "chips")}
        faults = {name: value for name, value in one.record["config"]["faults"].items() if name != "ber"}
        published = bool(one.record["config"]["chips"].get("published"))
        key = json.dumps([config, faults, one.record["ber_kind"], published], sort_keys=True)
        groups.setdefault(key, []).append(one)
    for own in groups.values():
        ordered = sorted(own, key=lambda one: float(one.record["ber"]))
        rates = [one.record["ber"] for one in ordered]
        if len(set(rates)) < 2:
            continue
        with chart(6.4, 3.4) as made:
            axes = made.axes[0][0]
            for what, colour, name in (("pa", SERIES[1], "without"), ("pa_nf", SERIES[0], "with NeuralFuse")):
                chips = [[chip[what] for chip in one.record["per_chip"]] for one in ordered]
                if chips[0][0] is None:
                    continue
                low, high = ([np.quantile(values, share) for values in chips] for share in (0.1, 0.9))
                axes.fill_between(rates, low, high, color=colour, alpha=0.25, linewidth=0)
                axes.plot(rates, [sum(v) / len(v) for v in chips], color=colour, marker="o", markersize=4, label=name)
            axes.set_xlabel(f"rate of faulty cells ({ordered[0].record['ber_kind']})")
            axes.set_ylabel("accuracy (%)")
            axes.xaxis.set_major_formatter(lambda value, place: f"{100 * value:g}%")
            axes.grid(axis="y")
            axes.legend(frameon=False)
        base = ordered[0].record["config"]["base"]["name"]
        alt = f"Accuracy of {base} against the rate, from {100 * rates[0]:g} to {100 * rates[-1]:g} percent."
        yield Figure(
            f"{base} against the rate", inline(made.svg, alt), "Bands hold the middle 80% of the chips.", tuple(ordered)
        )


def transfer_chart(found: Found) -> Iterator[Figure]:
    """Yield the recovery of modules trained for one model and used before another, as a matrix a rate and generator."""
    rows = [row for row in found.record["rows"] if row["measured"] is not None and "target" in row["of"]]
    keys = [key for key in (rows[0]["of"] if rows else []) if key not in ("source", "target")]
    for of in dict.fromkeys(tuple(row["of"][key] for key in keys) for row in rows):
        own = [row for row in rows if tuple(row["of"][key] for key in keys) == of]
        sources, targets = (list(dict.fromkeys(str(row["of"][key]) for row in own)) for key in ("source", "target"))
        value = {(str(row["of"]["source"]), str(row["of"]["target"])): row["measured"]["rp"] for row in own}
        most = max(1.0, *(abs(one) for one in value.values()))
        with chart(1.6 + 1.0 * len(targets), 0.9 + 0.45 * len(sources)) as made:
            axes = made.axes[0][0]
            for (source, target), rp in value.items():
                x, y = targets.index(target), sources.index(source)
                colour = SERIES[0] if rp >= 0 else SERIES[1]
                axes.add_patch(_square(x, y, colour, 0.1 + 0.4 * abs(rp) / most))
                axes.text(x, y, f"{rp:+.1f}", ha="center", va="center", fontsize=9)
            axes.set_xlim(-0.5, len(targets) - 0.5)
            axes.set_ylim(len(sources) - 0.5, -0.5)
            axes.set_xticks(range(len(targets)), targets)
            axes.set_yticks(range(len(sources)), sources)
            axes.set_xlabel("used before")
            axes.set_ylabel("trained for")
            axes.spines[["bottom", "left"]].set_visible(False)
            axes.tick_params(length=0)
        what = ", ".join(f"{key} {one}" for key, one in zip(keys, of, strict=True))
        pairs = "; ".join(f"{source} to {target} {rp:+.1f}" for (source, target), rp in value.items())
        yield Figure(
            f"Transfer, {what}", inline(made.svg, f"Recovery in points: {pairs}."), "Points recovered.", (found,)
        )


def _square(x: int, y: int, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    return Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour, alpha=alpha, edgecolor="none")


def saving_chart(found: Found) -> Iterator[Figure]:
    """Yield accuracy against energy saved, for tables that say both."""
    rows = [row for row in found.record["rows"] if row["measured"] and "energy_saving" in row["measured"]]
    rows = [row for row in rows if "pa_nf" in row["measured"]]
    if not rows:
        return
    with chart(6.4, 3.6) as made:
        axes = made.axes[0][0]
        for place, base in enumerate(dict.fromkeys(row["of"]["base"] for row in rows)):
            own = [row for row in rows if row["of"]["base"] == base]
            points = [(row["measured"]["energy_saving"], row["measured"]["pa_nf"]) for row in own]
            axes.scatter(*zip(*points, strict=True), s=28, color=SERIES[place % len(SERIES)], label=base)
            for row, point in zip(own, points, strict=True):
                axes.annotate(
                    row["of"]["generator"], point, xytext=(5, -3), textcoords="offset points", fontsize=8
                )  # fmt: skip
        axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=":")
        axes.set_xlabel("energy of the weights' accesses saved (%)")
        axes.set_ylabel("PA(NF) (%)")
        axes.grid()
        axes.legend(frameon=False, fontsize=8)
    alt = f"Accuracy behind NeuralFuse against energy saved, {len(rows)} pairs of base model and generator."
    yield Figure(
        str(found.record["title"]), inline(made.svg, alt), "Left of the dotted line nothing is saved.", (found,)
    )


def classes_chart(found: Found) -> Figure:
    """Return the accuracy of every class, without and with NeuralFuse."""
    classes = found.record["per_class"]
    order = sorted(range(len(classes["name"])), key=lambda place: classes["pa"][place])
    with chart(6.4, 0.8 + 0.17 * len(order)) as made:
        axes = made.axes[0][0]
        for row, place in enumerate(order):
            before, after = classes["pa"][place], classes["pa_nf"][place]
            axes.plot([before, after], [row, row], color=GRID, linewidth=2, zorder=1)
            axes.plot([before], [row], "o", color=SERIES[1], markersize=4, label="without" if row == 0 else None)
            axes.plot([after], [row], "o", color=SERIES[0], markersize=4, label="with NeuralFuse" if row == 0 else None)
        axes.set_yticks(range(len(order)), [classes["name"][place] for place in order], fontsize=8)
        axes.set_ylim(-1, len(order))
        axes.set_xlabel("accuracy on the class (%), mean over chips")
        axes.grid(axis="x")
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    gains = [after - before for before, after in zip(classes["pa"], classes["pa_nf"], strict=True)]
    worst = classes["name"][gains.index(min(gains))]
    alt = f"Accuracy of {len(order)} classes without and with NeuralFuse; {worst} gains least, {min(gains):+.1f}."
    return Figure("Recovery by class", inline(made.svg, alt), "Sorted by the accuracy without NeuralFuse.", (found,))


def outputs_chart(found: Found) -> Figure:
    """Return the t-SNE of the logits, a panel for each way to run the model."""
    shown = found.record["outputs"]
    panels, labels = shown["panels"], shown["labels"]
    with chart(7.2, 5.0, 2, (len(panels) + 1) // 2) as made:
        for axes, panel in zip(made.axes.T.flatten(), panels, strict=False):
            for label in sorted(set(labels)):
                points = [point for point, own in zip(panel["points"], labels, strict=True) if own == label]
                axes.scatter(
                    *zip(*points, strict=True), s=4, color=SERIES[label % len(SERIES)],
                    marker=_MARKS[label // len(SERIES) % len(_MARKS)], linewidths=0,
                )  # fmt: skip
            axes.set_title(f"{panel['title']}: {panel['accuracy']:.0f}%", fontsize=8, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[["bottom", "left"]].set_visible(False)
    said = "; ".join(f"{panel['title']} {panel['accuracy']:.0f} percent right" for panel in panels)
    caption = (
        f"t-SNE of the logits of {len(labels)} test images, colours and marks are classes; percent: right answers."
    )
    return Figure("What the model's answers look like", inline(made.svg, f"t-SNE panels: {said}."), caption, (found,))


def weights_chart(found: Found) -> Figure:
    """Return the histogram of the stored weights, clean and as the chip has them read."""
    shown = found.record["weights"]
    centers = [(low + high) / 2 for low, high in zip(shown["edges"], shown["edges"][1:], strict=False)]
    with chart(6.4, 2.8) as made:
        axes = made.axes[0][0]
        for key, colour, name in (("faulty", SERIES[1], "read through the chip"), ("clean", SERIES[0], "stored")):
            axes.step(centers, [max(one, 0.5) for one in shown[key]], where="mid", color=colour, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("weight, over the largest of its tensor")
        axes.set_ylabel("weights (log)")
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize=8)
    alt = f"A chip changes {shown['changed']:,} of {sum(shown['clean']):,} stored words, some of them to large values."
    return Figure("What the faults do to the weights", inline(made.svg, alt), alt, (found,))
