"""Means, standard deviations and Student-t intervals over chips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from neuralfuse.errors import require


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def sample_sd(values: Sequence[float]) -> float | None:
    """Return the standard deviation with n - 1 in the denominator; None for a single value."""
    if len(values) < 2:
        return None
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the two-sided Student-t interval of the mean; None for a single value."""
    sd = sample_sd(values)
    if sd is None:
        return None
    center = mean(values)
    half = t_quantile(0.5 + confidence / 2, len(values) - 1) * sd / math.sqrt(len(values))
    return center - half, center + half


def mean_at_least(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Return the one-sided lower Student-t bound of the mean; None for a single value."""
    sd = sample_sd(values)
    if sd is None:
        return None
    return mean(values) - t_quantile(confidence, len(values) - 1) * sd / math.sqrt(len(values))


def share_at_least(passed: int, count: int, confidence: float = 0.95) -> float:
    """Return a lower bound on the share of all chips that pass, if ``passed`` of ``count`` random chips passed.

    Source:
        Clopper and Pearson, The Use of Confidence or Fiducial Limits (Biometrika 26, 1934), one-sided: the share at
        which ``passed`` or more of ``count`` chips would pass with probability 1 - confidence.
    """
    require(count >= 1 and 0 <= passed <= count, f"passed must be in 0..count: got {passed} of {count}.")
    require(0 < confidence < 1, f"confidence must be in (0, 1): got {confidence}.")
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _upper_tail(passed, count, middle) < 1 - confidence else (low, middle)
    return low


def chips_for_share(share: float, confidence: float = 0.95) -> int:
    """Return the smallest number of chips that can show this share. All of them must then pass."""
    require(0 < share < 1, f"the share of chips must be in (0, 1): got {share}.")
    require(0 < confidence < 1, f"confidence must be in (0, 1): got {confidence}.")
    return math.ceil(math.log(1 - confidence) / math.log(share) - 1e-9)


def _upper_tail(passed: int, count: int, share: float) -> float:
    """Return P(X >= passed) of a binomial count."""
    if passed == 0:
        return 1.0
    terms = (
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(passed, count + 1)
    )  # fmt: skip
    return math.fsum(map(math.exp, terms))


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile (probability in [0.5, 1)) of Student's t with this many degrees of freedom."""
    require(0.5 <= probability < 1, f"probability must be in [0.5, 1): got {probability}.")
    require(freedom >= 1, f"degrees of freedom must be at least 1: got {freedom}.")
    low, high = 0.0, 1.0
    while _t_upper_half(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_upper_half(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_upper_half(t: float, freedom: int) -> float:
    """Return P(T <= t) for t >= 0. With t = sqrt(n) tan(a), Simpson's rule integrates the density cos(a)^(n-1)."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    angle, panels = math.atan2(t, math.sqrt(freedom)), 400
    step = angle / panels
    heights = [math.cos(step * k) ** (freedom - 1) for k in range(panels + 1)]
    total = heights[0] + heights[-1] + 4 * math.fsum(heights[1:-1:2]) + 2 * math.fsum(heights[2:-1:2])
    return 0.5 + scale * total * step / 3
