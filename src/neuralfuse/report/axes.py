"""Axes of charts: a scale with room for high accuracies, ticks of energies, and names beside points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

Spot = tuple[float, float]
"""A place: x and y."""
_ENERGIES = (0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)
_LINE = 0.045  # height of a line of text, as a fraction of the axes
_LETTER = 0.0125  # width of a letter


def stretch(axes: Any, way: Literal["x", "y"], lowest: float) -> None:
    """Give an axis a scale of accuracies that has more room where they are high.

    Halving the errors is about the same distance everywhere. Axes that share the scale get it too.

    Args:
        axes: Of matplotlib.
        way: Which axis.
        lowest: The lowest accuracy to show, in percent.
    """

    def stretched(accuracy: Any) -> Any:
        return -np.log(np.maximum(101 - accuracy, 0.1))  # 101: no errors must be at a finite place

    def accuracy(place: Any) -> Any:
        return 101 - np.exp(-place)

    start = float(accuracy(stretched(lowest) - 0.2))
    coarse, fine = (0, 50, 80, 90, 95, 98, 100), (98, 98.5, 99, 99.5, 100)
    ticks = [one for one in (coarse if start < 98 else fine) if one >= start]
    for side in (axes.get_shared_x_axes() if way == "x" else axes.get_shared_y_axes()).get_siblings(axes):
        getattr(side, f"set_{way}scale")("function", functions=(stretched, accuracy))
        getattr(side, f"set_{way}ticks")(ticks, [f"{one:g}" for one in ticks])
        getattr(side, f"set_{way}lim")(start, 100.3)


def energy_ticks(axes: Any) -> None:
    """Give the x-axis a logarithmic scale of relative energies, with ticks in percent."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [one for one in _ENERGIES if low <= one <= high]
    axes.set_xticks(ticks, [f"{100 * one:g}%" for one in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)


def place_names(axes: Any, names: Mapping[str, Spot], points: Sequence[Spot]) -> None:
    """Write names beside points, where there is room.

    Args:
        axes: Of matplotlib, with their final limits.
        names: The place of each name's point, the most important name first.
        points: All points, which names should not hide.
    """

    def fractions(spots: Sequence[Spot]) -> list[Spot]:
        """Return places as fractions of the axes."""
        if not spots:
            return []
        found = axes.transAxes.inverted().transform(axes.transData.transform(list(spots)))
        return [(float(x), float(y)) for x, y in found]

    own = dict(zip(names, fractions(list(names.values())), strict=True))
    for name, (x, y) in names_with_room(own, fractions(points)):
        axes.text(x, y, name, transform=axes.transAxes, fontsize=8, va="center")


def names_with_room(names: Mapping[str, Spot], points: Sequence[Spot]) -> Iterator[tuple[str, Spot]]:
    """Yield the names that have room near their points, and the left end of each.

    A name that would hide another name or two points is left out.

    Args:
        names: The place of each name's point, as fractions of the axes.
        points: The places of all points.
    """
    taken: list[tuple[float, float, float]] = []
    for name, (x, y) in names.items():
        wide = _LETTER * len(name)
        beside = [(x + 0.015, y), (x - 0.015 - wide, y)]
        near = [(left, y + up) for up in (_LINE, -_LINE) for left in (x - wide / 2, x - wide, x)]
        free = [
            (sum(left <= px <= left + wide and abs(py - line) < _LINE / 2 for px, py in points), order, left, line)
            for order, (left, line) in enumerate(beside + near)
            if left >= 0 and left + wide <= 1 and 0 <= line <= 1
            and all(abs(line - other) >= _LINE or left + wide < start or end < left for start, end, other in taken)
        ]  # fmt: skip
        if free and min(free)[0] < 2:
            _, _, left, line = min(free)
            taken.append((left, left + wide, line))
            yield name, (left, line)
