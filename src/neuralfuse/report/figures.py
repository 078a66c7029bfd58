"""The figures of a page: charts of evaluations, transfers and portraits, each made from records alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.patches import Rectangle

from neuralfuse.report.charts import Picture
from neuralfuse.report.pictures import WITH, WITHOUT, evaluations_picture
from neuralfuse.report.records import Found
from neuralfuse.report.svg import GRID, SERIES, chart, inline


@dataclass(frozen=True)
class Figure:
    """A picture on a page.

    Attributes:
        title: The heading.
        svg: The picture as SVG for the inside of a page.
        caption: How to read the picture.
        sources: The records that the picture was drawn from.
    """

    title: str
    svg: str
    caption: str
    sources: tuple[Found, ...]

    @staticmethod
    def of(picture: Picture, *sources: Found) -> Figure:
        """Return a chart as a figure of the page."""
        return Figure(picture.title, picture.svg(), picture.caption, sources)


_MARKS = "osv^D<>phdP*X"
"""Marks of classes. Each class has its own pair of mark and colour."""


def evaluation_charts(found: Sequence[Found]) -> Iterator[Figure]:
    """Yield accuracy against the rate for evaluations that differ in nothing but the rate."""
    groups: dict[str, list[Found]] = {}
    for one in found:
        config = {name: value for name, value in one.record["config"].items() if name not in ("faults", "chips")}
        faults = {name: value for name, value in one.record["config"]["faults"].items() if name != "ber"}
        published = bool(one.record["config"]["chips"].get("published"))
        key = json.dumps([config, faults, one.record["ber_kind"], published], sort_keys=True)
        groups.setdefault(key, []).append(one)
    for own in groups.values():
        ordered = sorted(own, key=lambda one: float(one.record["ber"]))
        if len({one.record["ber"] for one in ordered}) > 1:
            yield Figure.of(evaluations_picture([one.record for one in ordered]), *ordered)


def transfer_chart(found: Found) -> Iterator[Figure]:
    """Yield what modules recover that were trained for one model and used in front of another.

    Each figure is a matrix, for one generator and one rate.
    """
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
                colour = WITH if rp >= 0 else WITHOUT
                axes.add_patch(_square(x, y, colour, 0.1 + 0.4 * abs(rp) / most))
                axes.text(x, y, f"{rp:+.1f}", ha="center", va="center", fontsize=9)
            axes.set_xlim(-0.5, len(targets) - 0.5)
            axes.set_ylim(len(sources) - 0.5, -0.5)
            axes.set_xticks(range(len(targets)), targets)
            axes.set_yticks(range(len(sources)), sources)
            axes.set_xlabel("used in front of")
            axes.set_ylabel("trained for")
            axes.spines[["bottom", "left"]].set_visible(False)
            axes.tick_params(length=0)
        what = ", ".join(f"{key} {one}" for key, one in zip(keys, of, strict=True))
        pairs = "; ".join(f"{source} to {target} {rp:+.1f}" for (source, target), rp in value.items())
        caption = "Numbers are the points of accuracy that the module recovers, as means over chips."
        yield Figure(f"Transfer, {what}", inline(made.svg, f"Recovery in points: {pairs}."), caption, (found,))


def _square(x: int, y: int, colour: str, alpha: float) -> Rectangle:
    return Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour, alpha=alpha, edgecolor="none")


def classes_chart(found: Found) -> Figure:
    """Return the accuracy on every class, without and with NeuralFuse."""
    classes = found.record["per_class"]
    order = sorted(range(len(classes["name"])), key=lambda place: classes["pa"][place])
    with chart(6.4, 0.8 + 0.17 * len(order)) as made:
        axes = made.axes[0][0]
        for row, place in enumerate(order):
            before, after = classes["pa"][place], classes["pa_nf"][place]
            axes.plot([before, after], [row, row], color=GRID, linewidth=2, zorder=1)
            axes.plot([before], [row], "o", color=WITHOUT, markersize=4, label="without" if row == 0 else None)
            axes.plot([after], [row], "o", color=WITH, markersize=4, label="with NeuralFuse" if row == 0 else None)
        axes.set_yticks(range(len(order)), [classes["name"][place] for place in order], fontsize=8)
        axes.set_ylim(-1, len(order))
        axes.set_xlabel("accuracy on the class (%), mean over chips")
        axes.grid(axis="x")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    gains = [after - before for before, after in zip(classes["pa"], classes["pa_nf"], strict=True)]
    worst = classes["name"][gains.index(min(gains))]
    alt = f"Accuracy of {len(order)} classes without and with NeuralFuse; {worst} gains least: {min(gains):+.1f}."
    return Figure("Recovery by class", inline(made.svg, alt), "Sorted by the accuracy without NeuralFuse.", (found,))


def outputs_chart(found: Found) -> Figure:
    """Return the t-SNE of the logits, with one panel per way to run the model."""
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
        f"t-SNE of the logits for {len(labels)} test images. Colours and marks are classes. Percentages: right answers."
    )
    return Figure("What the model's answers look like", inline(made.svg, f"t-SNE panels: {said}."), caption, (found,))


def weights_chart(found: Found) -> Figure:
    """Return the histogram of the weights, as stored and as read through the chip."""
    shown = found.record["weights"]
    centers = [(low + high) / 2 for low, high in zip(shown["edges"], shown["edges"][1:], strict=False)]
    with chart(6.4, 2.8) as made:
        axes = made.axes[0][0]
        for key, colour, name in (("faulty", WITHOUT, "read through the chip"), ("clean", WITH, "stored")):
            axes.step(centers, [max(one, 0.5) for one in shown[key]], where="mid", color=colour, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("weight, relative to the largest one of its tensor")
        axes.set_ylabel("number of weights (log)")
        axes.grid(axis="y")
        axes.legend()
    alt = f"A chip changes {shown['changed']:,} of {sum(shown['clean']):,} stored words, some of them to large values."
    return Figure("What the faults do to the weights", inline(made.svg, alt), alt, (found,))
