"""The figures of a comparison: every method at every rate, against the rate, and against energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neuralfuse.report.figures import Figure
from neuralfuse.report.records import Found
from neuralfuse.report.svg import INK, MUTED, SERIES, chart, inline


def methods_chart(found: Found) -> Iterator[Figure]:
    """Yield, for each meaning of the rate, the accuracy of every method at every rate: mean and most chips."""
    rows = [row for row in found.record["rows"] if row["measured"] is not None]
    for faults in dict.fromkeys(row["faults"] for row in rows):
        own = [row for row in rows if row["faults"] == faults]
        rates = list(dict.fromkeys(row["ber"] for row in own))
        at = {(row["method"], row["ber"]): row["measured"] for row in own}
        every = dict.fromkeys(row["method"] for row in own)
        each = {name: [at[name, rate]["pa"] for rate in rates if (name, rate) in at] for name in every}
        mean = {name: sum(values) / len(values) for name, values in each.items()}
        names = sorted(every, key=lambda name: mean[name])
        colours = {row["method"]: _colour(row) for row in own}
        lowest = min(np.quantile(row["measured"]["per_chip"]["pa"], 0.1) for row in own)
        with chart(2.2 + 2.1 * len(rates), 0.9 + 0.24 * len(names), 1, len(rates), sharey=True, sharex=True) as made:
            _stretch(made.axes[0][0], "x", lowest)
            for axes, rate in zip(made.axes[0], rates, strict=True):
                if ("none", rate) in at:
                    axes.axvline(at["none", rate]["pa"], color=MUTED, linewidth=0.9, linestyle=":")
                for place, name in enumerate(names):
                    if (name, rate) not in at:  # not measured yet
                        continue
                    values = at[name, rate]["per_chip"]["pa"]
                    colour = colours[name]
                    span = [np.quantile(values, 0.1), np.quantile(values, 0.9)]
                    axes.plot(span, [place, place], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
                    axes.plot([at[name, rate]["pa"]], [place], "o", color=colour, markersize=4.5)
                axes.set_title(f"{100 * rate:g}% {faults}", fontsize=9, loc="left")
                axes.grid(axis="x")
                axes.set_yticks(range(len(names)), names)
                axes.tick_params(axis="y", length=0)
                axes.set_xlabel("accuracy on unseen chips (%)")
            _name_colours(made.axes[0][0])
            made.figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=3)
        alt = (
            f"Accuracy on faulty chips of {len(names)} methods, {faults}, at {len(rates)} rates; highest over all of "
            f"them is {names[-1]} with {mean[names[-1]]:.1f} percent"
        )
        alt += f", without protection it is {mean['none']:.1f}." if "none" in mean else "."
        caption = (
            f"Dots are means over {found.record['config']['chips']} chips, bars hold the middle 80% of them; dotted: "
            f"no protection. The methods are in the order of their means over the rates. {_STRETCHED}"
        )
        yield Figure(f"All methods, {faults}", inline(made.svg, alt), caption, (found,))


def rates_chart(found: Found) -> Iterator[Figure]:
    """Yield, for each meaning of the rate, accuracy against the rate as bands over chips: a panel a method."""
    rows = [row for row in found.record["rows"] if row["measured"] is not None]
    for faults in dict.fromkeys(row["faults"] for row in rows):
        own = [row for row in rows if row["faults"] == faults]
        rates = sorted({row["ber"] for row in own})
        of: dict[str, dict[float, list[float]]] = {}
        for row in own:
            of.setdefault(row["method"], {})[row["ber"]] = row["measured"]["per_chip"]["pa"]
        plain = of.pop("none", {})
        names = [name for name in of if len(of[name]) > 1]
        if len(rates) < 2 or len(plain) < 2 or not names:
            continue
        lines = -(-len(names) // 4)
        lowest = min(np.quantile(row["measured"]["per_chip"]["pa"], 0.1) for row in own)
        with chart(8.4, 1.5 * lines + 0.4, lines, 4, sharex=True, sharey=True) as made:
            _stretch(made.axes[0][0], "y", lowest)
            for axes, name in zip(made.axes.flatten(), names, strict=False):
                for chips, colour in ((plain, MUTED), (of[name], SERIES[0])):
                    at = sorted(chips)
                    low, high = ([np.quantile(chips[rate], share) for rate in at] for share in (0.1, 0.9))
                    axes.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
                    means = [sum(chips[rate]) / len(chips[rate]) for rate in at]
                    axes.plot(at, means, color=colour, marker="o", markersize=3)
                axes.set_title(name, fontsize=8, loc="left")
                axes.grid(axis="y")
            for axes in made.axes.flatten()[len(names) :]:
                axes.set_visible(False)
            for place in range(4):  # the lowest panel of each column has the rates under it
                column = [axes for axes in made.axes[:, place] if axes.get_visible()]
                if column:
                    column[-1].set_xticks(rates, [f"{100 * rate:g}%" for rate in rates], fontsize=8)
                    column[-1].tick_params(labelbottom=True)
        worst = rates[-1]
        said = "; ".join(
            f"{name} {sum(of[name][worst]) / len(of[name][worst]):.0f}" for name in names if worst in of[name]
        )
        alt = f"Accuracy against the rate, a panel a method, {faults}. At {100 * worst:g} percent: {said}."
        caption = f"Bands hold the middle 80% of the chips, lines are means; grey: no protection. {_STRETCHED}"
        yield Figure(f"Accuracy against the rate, {faults}", inline(made.svg, alt), caption, (found,))


def _is_neuralfuse(stage: Mapping[str, Any]) -> bool:
    return bool(stage["method"] in ("neuralfuse", "given") and stage["generator"] != "uip")


def energy_chart(found: Found) -> Iterator[Figure]:
    """Yield accuracy against the energy of the weights' memory, for each meaning of the rate."""
    rows = [row for row in found.record["rows"] if row["measured"] and row["measured"]["energy"] is not None]
    for faults in dict.fromkeys(row["faults"] for row in rows):
        own = [row for row in rows if row["faults"] == faults]
        rates = list(dict.fromkeys(row["ber"] for row in own))
        with chart(6.4, 4.2) as made:
            axes = made.axes[0][0]
            _stretch(axes, "y", min(row["measured"]["pa"] for row in own))
            for row in own:
                value, mark = row["measured"], _MARKS[rates.index(row["ber"]) % len(_MARKS)]
                front_most = 3 if row["method"] == "none" else 2
                axes.plot([value["energy"]], [value["pa"]], mark, color=_colour(row), markersize=5, zorder=front_most)
            _name_colours(axes)
            for rate, mark in zip(rates, _MARKS, strict=False):
                axes.plot([], [], mark, color=MUTED, markersize=5, label=f"{100 * rate:g}% {faults}")
            axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=":")
            axes.set_xscale("log")
            axes.set_xlabel("energy of the weights' accesses, over the plain model's at full voltage (log)")
            axes.set_ylabel("accuracy (%)")
            low, high = axes.get_xlim()
            ticks = [
                one
                for one in (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)
                if low <= one <= high
            ]
            axes.set_xticks(ticks, [f"{100 * one:g}%" for one in ticks])
            axes.set_xticks([], minor=True)
            axes.set_xlim(low, high)
            axes.grid()
            made.figure.legend(loc="outside upper left", frameon=False, fontsize=8, ncols=2)
            named = _named(own, found.record["config"]["train_rate"])
            named.sort(key=lambda row: -float(row["measured"]["pa"]))
            spots = axes.transAxes.inverted().transform(
                axes.transData.transform([(row["measured"]["energy"], row["measured"]["pa"]) for row in own])
            )
            at = {(row["method"], row["ber"]): (float(x), float(y)) for row, (x, y) in zip(own, spots, strict=True)}
            labels = {f"{row['method']} ({100 * row['ber']:g}%)": at[row["method"], row["ber"]] for row in named}
            for label, spot in _with_room(labels, list(at.values())):
                axes.text(*spot, label, transform=axes.transAxes, fontsize=8, va="center")
        names = ", ".join(dict.fromkeys(row["method"] for row in front(own)))
        alt = f"Accuracy against memory energy, {faults}. On the front of what no other beats in both: {names}."
        caption = (
            "Named, where there is room: what no other method beats in both accuracy and energy; and, at the rate that "
            "methods prepare for, no protection, the best NeuralFuse and the smaller model. What lies right of the "
            f"dotted line costs more than the plain model at full voltage. {_STRETCHED}"
        )
        yield Figure(f"Accuracy against energy, {faults}", inline(made.svg, alt), caption, (found,))


_MARKS = ("o", "s", "^", "D", "v")  # of the rates
_STRETCHED = "The scale of accuracy is stretched towards 100%, where the best methods lie close together."


def _stretch(axes: Any, way: str, lowest: float) -> None:
    """Give the x or y axis a scale of accuracies from the lowest up: halved errors are about the same distance."""

    def stretched(accuracy: Any) -> Any:
        return -np.log(np.maximum(101 - accuracy, 0.1))  # 101: a scale of errors that has an end

    def accuracy(place: Any) -> Any:
        return 101 - np.exp(-place)

    start = float(accuracy(stretched(lowest) - 0.2))
    coarse, fine = (0, 50, 80, 90, 95, 98, 100), (98, 98.5, 99, 99.5, 100)
    ticks = [one for one in (coarse if start < 98 else fine) if one >= start]
    for side in (axes.get_shared_x_axes() if way == "x" else axes.get_shared_y_axes()).get_siblings(axes):
        getattr(side, f"set_{way}scale")("function", functions=(stretched, accuracy))
        getattr(side, f"set_{way}ticks")(ticks, [f"{one:g}" for one in ticks])
        getattr(side, f"set_{way}lim")(start, 100.3)


def _name_colours(axes: Any) -> None:
    """Give a legend what the colours of methods mean."""
    kinds = (("no protection", INK), ("with NeuralFuse", SERIES[0]), ("other methods", SERIES[1]))
    for name, colour in kinds:
        axes.plot([], [], "o", color=colour, markersize=5, label=name)


def _colour(row: Mapping[str, Any]) -> str:
    if row["method"] == "none":
        return INK
    return SERIES[0] if any(_is_neuralfuse(stage) for stage in row["stages"]) else SERIES[1]


def _named(rows: Sequence[Mapping[str, Any]], train_rate: float) -> list[Mapping[str, Any]]:
    """Return the rows whose points have names."""
    named = front(rows)
    there = [row for row in rows if row["ber"] == train_rate]
    fused = [row for row in there if _colour(row) == SERIES[0]]
    best = [max(fused, key=lambda row: float(row["measured"]["pa"]))] if fused else []
    for row in [*best, *(row for row in there if row["method"] in ("none", "smaller"))]:
        if row not in named and not (row["method"] == "smaller" and any(one["method"] == "smaller" for one in named)):
            named.append(row)
    return named


_Spot = tuple[float, float]


def _with_room(labels: Mapping[str, _Spot], points: Sequence[_Spot]) -> Iterator[tuple[str, _Spot]]:
    """Yield labels beside their points, and where each starts; what would hide another or two points is left out."""
    taken: list[tuple[float, float, float]] = []
    high = 0.045  # a line; as all of it, in fractions of the axes
    for label, (x, y) in labels.items():
        wide = 0.0125 * len(label)
        beside = [(x + 0.015, y), (x - 0.015 - wide, y)]
        near = [(left, y + up) for up in (high, -high) for left in (x - wide / 2, x - wide, x)]
        places = beside + near
        free = [
            (sum(left <= px <= left + wide and abs(py - line) < high / 2 for px, py in points), order, left, line)
            for order, (left, line) in enumerate(places)
            if left >= 0 and left + wide <= 1 and 0 <= line <= 1
            and all(abs(line - other) >= high or left + wide < start or end < left for start, end, other in taken)
        ]  # fmt: skip
        if free and min(free)[0] < 2:
            _, _, left, line = min(free)
            taken.append((left, left + wide, line))
            yield label, (left, line)


def front(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that no other beats in both energy and accuracy, by rising energy."""
    best, kept = float("-inf"), []
    for row in sorted(rows, key=lambda row: (row["measured"]["energy"], -row["measured"]["pa"])):
        if row["measured"]["pa"] > best:
            best = row["measured"]["pa"]
            kept.append(row)
    return kept
