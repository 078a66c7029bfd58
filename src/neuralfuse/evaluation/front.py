"""What no other beats: the Pareto front of costs and values."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other beats, by rising cost. Of equal points, the first is returned.

    A point beats another if it costs no more and is worth no less, and differs in one of both.

    Args:
        points: The cost and the value of each, for example energy and accuracy.
    Returns:
        Indices of points.
    """
    best, front = -math.inf, list[int]()
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front
