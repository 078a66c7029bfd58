"""The two charts of accuracies: against energy, and against a rate. What is drawn is data."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuralfuse.evaluation import mean
from neuralfuse.report.axes import Spot, energy_ticks, place_names, stretch
from neuralfuse.report.svg import FOR_A_FILE, FOR_A_PAGE, MUTED, Chart, chart, inline

_SYMLOG_BELOW = -300  # percent saved: generators that are far larger than the base model


@dataclass(frozen=True, kw_only=True)
class Series:
    """Accuracies of one kind. A series without points is an entry of the legend.

    Attributes:
        colour: A role, see `neuralfuse.report.svg`.
        x: Energies or rates, in the order of the line.
        y: The accuracy at each, in percent.
        low: The lower end of each accuracy's interval; empty where there are no intervals.
        high: The upper end of each.
        label: What the legend says; empty for no entry.
        mark: A marker of matplotlib; empty for none.
        line: A line style of matplotlib; empty for none.
        size: Of the marks, in points.
        hollow: Whether the marks are outlines.
        faint: Whether the marks are pale.
        note: Text beside every point.
    """

    colour: str
    x: Sequence[float] = ()
    y: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    label: str = ""
    mark: str = "o"
    line: str = ""
    size: float = 5
    hollow: bool = False
    faint: bool = False
    note: str = ""

    @staticmethod
    def of_chips(accuracies: Mapping[float, Sequence[float]], **options: Any) -> Series:
        """Return the means over chips at each rate, with intervals that hold the middle 80% of the chips.

        Args:
            accuracies: Of each chip in percent, by rate.
            options: More attributes.
        """
        rates = sorted(accuracies)
        low, high = ([float(np.quantile(accuracies[rate], share)) for rate in rates] for share in (0.1, 0.9))
        return Series(x=rates, y=[mean(accuracies[rate]) for rate in rates], low=low, high=high, line="-", **options)

    def draw(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Draw marks and line."""
        colour = colours[self.colour]
        fill = "none" if self.hollow else colour
        axes.plot(
            self.x, self.y, linestyle=self.line or "none", marker=self.mark or "none", color=colour,
            markersize=self.size, markerfacecolor=fill, markeredgewidth=1.2 if self.hollow else 1, linewidth=1.8,
            alpha=0.6 if self.faint else 1, label=self.label or None,
        )  # fmt: skip
        for point in zip(self.x, self.y, strict=True) if self.note else ():
            axes.annotate(self.note, point, xytext=(4, 1), textcoords="offset points", color=colour, fontsize=11)


@dataclass(frozen=True, kw_only=True)
class Level:
    """An accuracy to compare with: a dotted line.

    Attributes:
        accuracy: In percent.
        colour: A role.
        label: What the legend says; empty for no entry.
    """

    accuracy: float
    colour: str = MUTED
    label: str = ""

    def draw(self, axes: Any, colours: Mapping[str, str]) -> None:
        """Draw the line."""
        axes.axhline(
            self.accuracy, color=colours[self.colour], linewidth=1, linestyle=":", zorder=0, label=self.label or None
        )


@dataclass(frozen=True, kw_only=True)
class Picture(ABC):
    """A chart as data.

    Attributes:
        title: Its heading.
        caption: How to read it.
        alt: What it shows, in words.
        x_label: What the x-axis says.
        y_label: What the y-axis says.
    """

    title: str
    caption: str
    alt: str
    x_label: str
    y_label: str = "accuracy (%)"

    def svg(self) -> str:
        """Return it as SVG for the inside of a page, which has title and caption around it."""
        with self._surface(FOR_A_PAGE) as made:
            self._draw(made)
            return inline(made.svg, self.alt)

    def save(self, path: Path) -> None:
        """Write it to a file with its title and caption. The suffix of the file decides the format."""
        with self._surface(FOR_A_FILE) as made:
            replace(self, x_label=f"{self.x_label}\n{textwrap.fill(self.caption, 100)}")._draw(made)
            title: dict[str, Any] = {"fontsize": 9, "weight": "bold"}
            if made.axes.size == 1:
                made.axes[0][0].set_title(textwrap.fill(self.title, 90), loc="left", **title)
            else:
                made.figure.suptitle(textwrap.fill(self.title, 90), **title)
            made.save(path)

    @abstractmethod
    def _surface(self, colours: Mapping[str, str]) -> Any:
        """Return what it is drawn on, as a context."""

    @abstractmethod
    def _draw(self, made: Chart) -> None:
        """Draw it."""


@dataclass(frozen=True, kw_only=True)
class EnergyChart(Picture):
    """Accuracy against energy.

    Attributes:
        energy: What x is: percent saved, or the energy relative to that of the plain model at full voltage. A dotted
            line marks the plain model's energy.
        series: The points. Intervals are error bars.
        levels: Accuracies to compare with.
        names: Points that have a name beside them, the most important first. Where there is no room there is no name.
        accuracies: Ends of the y-axis; None to show all points.
        stretched: Whether the y-axis gives more room to high accuracies.
        legend_columns: Columns of the legend, which fills one after the other.
    """

    energy: Literal["saved", "relative"]
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    names: Mapping[str, Spot] = field(default_factory=dict)
    accuracies: tuple[float, float] | None = None
    stretched: bool = False
    legend_columns: int = 4

    def _surface(self, colours: Mapping[str, str]) -> Any:
        return chart(7.2, 4.6, colours=colours)

    def _draw(self, made: Chart) -> None:
        axes, colours = made.axes[0][0], made.colours
        points = [point for one in self.series for point in zip(one.x, one.y, strict=True)]
        if self.stretched:
            stretch(axes, "y", min(accuracy for _, accuracy in points))
        for one in self.series:
            one.draw(axes, colours)
            if one.low:
                away = [
                    [y - low for y, low in zip(one.y, one.low, strict=True)],
                    [high - y for y, high in zip(one.y, one.high, strict=True)],
                ]
                axes.errorbar(one.x, one.y, yerr=away, fmt="none", ecolor=colours[one.colour], elinewidth=1, capsize=2)
        for level in self.levels:
            level.draw(axes, colours)
        self._scale(axes, min(energy for energy, _ in points), colours[MUTED])
        if self.accuracies is not None:
            axes.set_ylim(*self.accuracies)
        axes.grid()
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        made.figure.legend(loc="outside lower center", ncols=self.legend_columns)
        place_names(axes, self.names, points)

    def _scale(self, axes: Any, lowest: float, colour: str) -> None:
        """Give the x-axis its scale and ticks, and mark the energy of the plain model where it is in sight."""
        if self.energy == "relative":
            energy_ticks(axes)
        elif lowest < _SYMLOG_BELOW:
            axes.set_xscale("symlog", linthresh=100)
            axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
        plain, (left, right) = 1.0 if self.energy == "relative" else 0.0, axes.get_xlim()
        if left < plain < right:
            axes.axvline(plain, color=colour, linewidth=1, linestyle=":", zorder=0)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One part of a chart of bands.

    Attributes:
        series: The curves. Intervals are bands.
        levels: Accuracies to compare with.
        title: Its heading.
    """

    series: Sequence[Series]
    levels: Sequence[Level] = ()
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class BandsChart(Picture):
    """Accuracy against a rate, or against another number, as bands over chips.

    Attributes:
        panels: One or more. A single one has the labels of its curves at their ends.
        ticks: Values of x and what the axis says there.
        marked: A value of x that has a dashed line, and what it means; None for no line.
        logarithmic: Whether the x-axis is.
        stretched: Whether the y-axis gives more room to high accuracies.
    """

    panels: Sequence[Panel]
    ticks: Mapping[float, str]
    marked: tuple[float, str] | None = None
    logarithmic: bool = False
    stretched: bool = False

    def _surface(self, colours: Mapping[str, str]) -> Any:
        if len(self.panels) == 1:
            return chart(7.2, 4.2, colours=colours)
        lines = -(-len(self.panels) // _COLUMNS)
        return chart(8.4, 1.5 * lines + 0.4, lines, _COLUMNS, colours=colours, sharex=True, sharey=True)

    def _draw(self, made: Chart) -> None:
        every, alone = made.axes.flatten(), len(self.panels) == 1
        if self.stretched:
            stretch(every[0], "y", min(min(one.low) for panel in self.panels for one in panel.series))
        if self.logarithmic:
            every[0].set_xscale("log")
        for axes, panel in zip(every, self.panels, strict=False):
            for one in panel.series:
                colour = made.colours[one.colour]
                if one.low:
                    axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.22, linewidth=0)
                replace(one, label="").draw(axes, made.colours)
            for level in panel.levels:
                level.draw(axes, made.colours)
            axes.set_title(panel.title, fontsize=8, loc="left")
            axes.grid(axis="y")
        for axes in every[len(self.panels) :]:
            axes.set_visible(False)
        self._label(made)
        if self.marked is not None:
            place, text = self.marked
            every[0].axvline(place, color=made.colours[MUTED], linewidth=0.8, linestyle="--", zorder=0)
            every[0].annotate(
                text, (place, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
                color=made.colours[MUTED], fontsize=8,
            )  # fmt: skip
        if alone:
            _name_curves(every[0], self.panels[0].series, made.colours)

    def _label(self, made: Chart) -> None:
        """Label the axes. Of several panels, only the lowest one of each column has ticks with numbers."""
        for column in made.axes.T:
            lowest = [axes for axes in column if axes.get_visible()][-1:]
            for axes in lowest:
                axes.set_xticks(list(self.ticks), list(self.ticks.values()))
                axes.set_xticks([], minor=True)
                axes.tick_params(labelbottom=True)
        if len(self.panels) == 1:
            made.axes[0][0].set_xlabel(self.x_label)
            made.axes[0][0].set_ylabel(self.y_label)
        else:
            made.figure.supxlabel(self.x_label, fontsize=9)
            made.figure.supylabel(self.y_label, fontsize=9)


_COLUMNS = 4  # of panels


def rate_ticks(rates: Sequence[float]) -> dict[float, str]:
    """Return the rates that an axis has room to name, as percentages. The highest one is always named."""
    ordered = sorted(set(rates), reverse=True)
    least = 0.06 * (ordered[0] - ordered[-1])
    kept = ordered[:1]
    for rate in ordered[1:]:
        if kept[-1] - rate >= least:
            kept.append(rate)
    return {rate: f"{100 * rate:g}%" for rate in reversed(kept)}


def _name_curves(axes: Any, curves: Sequence[Series], colours: Mapping[str, str]) -> None:
    """Write the label of each curve at its right end. Labels that would overlap move up."""
    named = sorted((one for one in curves if one.label), key=lambda one: one.y[-1])
    low, high = axes.get_ylim()
    line = 0.06 * (high - low)
    heights = [line * (1 + one.label.count("\n")) for one in named]
    places = [one.y[-1] for one in named]
    for at, (below, above) in enumerate(pairwise(heights)):
        places[at + 1] = max(places[at + 1], places[at] + (below + above) / 2)
    for one, place in zip(named, places, strict=True):
        axes.annotate(
            one.label, (1, place), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
            color=colours[one.colour], weight="bold", va="center", annotation_clip=False,
        )  # fmt: skip
