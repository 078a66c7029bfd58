"""The pictures of a comparison: all methods at every rate, against the rate, and against energy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from neuralfuse.evaluation import mean, pareto
from neuralfuse.report.axes import stretch
from neuralfuse.report.charts import BandsChart, EnergyChart, Panel, Series
from neuralfuse.report.figures import Figure
from neuralfuse.report.records import Found
from neuralfuse.report.svg import INK, MUTED, SERIES, Chart, chart, inline

Row = Mapping[str, Any]
Kind = Literal["no protection", "with NeuralFuse", "other methods"]
_COLOURS: dict[Kind, str] = {"no protection": INK, "with NeuralFuse": SERIES[0], "other methods": SERIES[1]}
_MARKS = ("o", "s", "^", "D", "v")  # of the rates
_STRETCHED = "The scale of accuracy has more room near 100%, where the best methods lie close together."


def methods_chart(found: Found) -> Iterator[Figure]:
    """Yield, for each fault model, the accuracy of every method at every rate: the mean and most of the chips."""
    for faults, rows in _by_faults(found):
        rates = list(dict.fromkeys(row["ber"] for row in rows))
        means = {
            name: mean([row["measured"]["pa"] for row in rows if row["method"] == name])
            for name in dict.fromkeys(row["method"] for row in rows)
        }
        names = sorted(means, key=lambda name: means[name])
        with chart(2.2 + 2.1 * len(rates), 0.9 + 0.24 * len(names), 1, len(rates), sharey=True, sharex=True) as made:
            _draw_methods(made, rows, rates, names)
        alt = (
            f"Accuracy on faulty chips of {len(names)} methods, {faults}, at {len(rates)} rates. The highest mean over "
            f"the rates is {means[names[-1]]:.1f} percent, of {names[-1]}"
        )
        alt += f"; without protection it is {means['none']:.1f}." if "none" in means else "."
        caption = (
            f"Dots are means over {found.record['config']['chips']} chips; bars hold the middle 80% of them; dotted: "
            f"no protection. The methods are sorted by their means over the rates. {_STRETCHED}"
        )
        yield Figure(f"All methods, {faults}", inline(made.svg, alt), caption, (found,))


def _draw_methods(made: Chart, rows: Sequence[Row], rates: Sequence[float], names: Sequence[str]) -> None:
    """Draw one column per rate and one line per method, with the last name at the top."""
    at = {(row["method"], row["ber"]): row for row in rows}
    first = made.axes[0][0]
    stretch(first, "x", min(np.quantile(row["measured"]["per_chip"]["pa"], 0.1) for row in rows))
    for axes, rate in zip(made.axes[0], rates, strict=True):
        if ("none", rate) in at:
            axes.axvline(at["none", rate]["measured"]["pa"], color=MUTED, linewidth=0.9, linestyle=":")
        for place, name in enumerate(names):
            if (name, rate) not in at:  # not measured yet
                continue
            measured, colour = at[name, rate]["measured"], _COLOURS[_kind(at[name, rate])]
            span = np.quantile(measured["per_chip"]["pa"], [0.1, 0.9])
            axes.plot(span, [place, place], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
            axes.plot([measured["pa"]], [place], "o", color=colour, markersize=4.5)
        axes.set_title(f"{100 * rate:g}% {rows[0]['faults']}", fontsize=9, loc="left")
        axes.grid(axis="x")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy on unseen chips (%)")
    for one in _key():
        one.draw(first, made.colours)
    made.figure.legend(loc="outside upper left", ncols=3)


def rates_chart(found: Found) -> Iterator[Figure]:
    """Yield, for each fault model, the accuracy against the rate as bands over chips, with one panel per method."""
    for faults, rows in _by_faults(found):
        chips: dict[str, dict[float, list[float]]] = {}
        for row in rows:
            chips.setdefault(row["method"], {})[row["ber"]] = row["measured"]["per_chip"]["pa"]
        plain = chips.pop("none", {})
        methods = {name: own for name, own in chips.items() if len(own) > 1}
        if len(plain) < 2 or not methods:
            continue
        rates = sorted({row["ber"] for row in rows})
        grey = Series.of_chips(plain, colour=MUTED, size=3)
        panels = [
            Panel(title=name, series=[grey, Series.of_chips(own, colour=SERIES[0], size=3)])
            for name, own in methods.items()
        ]
        said = "; ".join(f"{name} {mean(own[rates[-1]]):.0f}" for name, own in methods.items() if rates[-1] in own)
        picture = BandsChart(
            title=f"Accuracy against the rate, {faults}",
            caption=f"Lines are means; bands hold the middle 80% of the chips; grey: no protection. {_STRETCHED}",
            alt=f"Accuracy against the rate, one panel per method, {faults}. At {100 * rates[-1]:g} percent: {said}.",
            x_label=f"rate ({faults})",
            panels=panels,
            ticks={rate: f"{100 * rate:g}%" for rate in rates},
            stretched=True,
        )
        yield Figure.of(picture, found)


def energy_chart(found: Found) -> Iterator[Figure]:
    """Yield, for each fault model, the accuracy against the energy of the weights' memory."""
    for faults, rows in _by_faults(found, with_energy=True):
        front = ", ".join(dict.fromkeys(row["method"] for row in front_rows(rows)))
        named = _named(rows, found.record["config"]["train_rate"])
        named.sort(key=lambda row: -float(row["measured"]["pa"]))
        picture = EnergyChart(
            title=f"Accuracy against energy, {faults}",
            caption=(
                "Named, where there is room, are the methods that no other beats in both accuracy and energy. Named "
                "too, at the rate that methods are trained for, are no protection, the best NeuralFuse and the smaller "
                f"model. A method right of the dotted line costs more than the plain model at full voltage. "
                f"{_STRETCHED}"
            ),
            alt=f"Accuracy against memory energy, {faults}. No other method beats these in both: {front}.",
            x_label="energy of the weights' accesses, relative to the plain model's at full voltage (log)",
            energy="relative",
            series=list(_points(rows)),
            names={f"{row['method']} ({100 * row['ber']:g}%)": _place(row) for row in named},
            stretched=True,
            legend_columns=2,
        )
        yield Figure.of(picture, found)


def _points(rows: Sequence[Row]) -> Iterator[Series]:
    """Yield a comparison's points, colours for kinds of methods and marks for rates, and their legend."""
    rates = list(dict.fromkeys(row["ber"] for row in rows))
    marks = {rate: _MARKS[place % len(_MARKS)] for place, rate in enumerate(rates)}
    for kind in ("with NeuralFuse", "other methods", "no protection"):  # what comes last lies above the others
        for rate, mark in marks.items():
            own = [_place(row) for row in rows if _kind(row) == kind and row["ber"] == rate]
            if own:
                x, y = zip(*own, strict=True)
                yield Series(colour=_COLOURS[kind], mark=mark, x=x, y=y)
    yield from _key()
    for rate, mark in marks.items():
        yield Series(colour=MUTED, mark=mark, label=f"{100 * rate:g}% {rows[0]['faults']}")


def _key() -> Iterator[Series]:
    """Yield the legend of the colours."""
    for kind, colour in _COLOURS.items():
        yield Series(colour=colour, label=kind)


def _by_faults(found: Found, *, with_energy: bool = False) -> Iterator[tuple[str, list[Row]]]:
    """Yield the rows that are measured, for each fault model."""
    rows = [row for row in found.record["rows"] if row["measured"] is not None]
    if with_energy:
        rows = [row for row in rows if row["measured"]["energy"] is not None]
    for faults in dict.fromkeys(row["faults"] for row in rows):
        yield faults, [row for row in rows if row["faults"] == faults]


def _kind(row: Row) -> Kind:
    if row["method"] == "none":
        return "no protection"
    fused = any(stage["method"] in ("neuralfuse", "given") and stage["generator"] != "uip" for stage in row["stages"])
    return "with NeuralFuse" if fused else "other methods"


def _place(row: Row) -> tuple[float, float]:
    """Return a row's energy and accuracy."""
    return float(row["measured"]["energy"]), float(row["measured"]["pa"])


def front_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other beats in both energy and accuracy, by rising energy."""
    return [rows[place] for place in pareto([_place(row) for row in rows])]


def _named(rows: Sequence[Row], train_rate: float) -> list[Row]:
    """Return the rows whose points have names."""
    named = front_rows(rows)
    trained_for = [row for row in rows if row["ber"] == train_rate]
    fused = [row for row in trained_for if _kind(row) == "with NeuralFuse"]
    best = [max(fused, key=lambda row: float(row["measured"]["pa"]))] if fused else []
    for row in [*best, *(row for row in trained_for if row["method"] in ("none", "smaller"))]:
        if row not in named and not (row["method"] == "smaller" and any(one["method"] == "smaller" for one in named)):
            named.append(row)
    return named
