"""The accuracy that an operating point must reach, on the mean over chips or on a share of all chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuralfuse.errors import require
from neuralfuse.evaluation.stats import chips_for_share, mean, mean_at_least, share_at_least, t_interval

FEWEST = 10  # least number of chips for a decision
_MEAN_CHIPS = 30


@dataclass(frozen=True, kw_only=True)
class Target:
    """An accuracy to reach.

    Without ``share``, the mean over all chips must reach the accuracy (a one-sided Student-t bound). With ``share``,
    this share of all chips must reach it (Clopper and Pearson's bound, which assumes no distribution).

    Args:
        accuracy: The accuracy, in percent.
        share: Share of all chips that must reach it, in (0, 1), for instance 0.99; None for the mean.
        confidence: Confidence of the statement about all chips.
    """

    accuracy: float
    share: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        legal = 1 <= self.accuracy <= 100
        require(legal, f"target must be an accuracy in [1, 100], in percent and not a fraction: got {self.accuracy}.")
        require(0.5 < self.confidence < 1, f"confidence must be in (0.5, 1): got {self.confidence}.")
        require(self.share is None or 0 < self.share < 1, f"yield must be in (0, 1): got {self.share}.")

    @property
    def chips(self) -> int:
        """Number of chips to measure: 30 for a mean, else the fewest that can show the share, but at least 10."""
        return _MEAN_CHIPS if self.share is None else max(FEWEST, chips_for_share(self.share, self.confidence))

    def passed(self, accuracies: Sequence[float]) -> int:
        """Return the number of chips that reach the accuracy."""
        return sum(value >= self.accuracy for value in accuracies)

    def is_met(self, accuracies: Sequence[float], *, exact: bool = False) -> bool:
        """Say whether the measured chips show that the target is met.

        ``exact`` means that there are no other chips, for instance without bit errors.
        """
        if exact:
            return min(accuracies) >= self.accuracy
        if self.share is None:
            bound = mean_at_least(accuracies, self.confidence)
            return bound is not None and bound >= self.accuracy
        return share_at_least(self.passed(accuracies), len(accuracies), self.confidence) >= self.share

    def judge(self, accuracies: Sequence[float], *, exact: bool = False) -> dict[str, Any]:
        """Return statistics of the measured chips and bounds for all chips, as JSON."""
        interval, passed = t_interval(accuracies), self.passed(accuracies)
        share = passed / len(accuracies) if exact else share_at_least(passed, len(accuracies), self.confidence)
        return {
            "mean": mean(accuracies),
            "mean_ci95": None if interval is None else list(interval),
            "worst": min(accuracies),
            "passed": passed,
            "share_at_least": share,
        }

    def is_lost(self, accuracies: Sequence[float], chips: int) -> bool:
        """Say whether the target cannot be met any more, however accurate the remaining chips are."""
        if len(accuracies) < FEWEST:
            return False
        left = chips - len(accuracies)
        if self.share is None:
            return mean([*accuracies, *[100.0] * left]) < self.accuracy
        return share_at_least(self.passed(accuracies) + left, chips, self.confidence) < self.share

    def __str__(self) -> str:
        """Describe the target in words."""
        if self.share is None:
            return f"a mean of {self.accuracy:g}%, {self.confidence:.0%} sure"
        return f"{self.accuracy:g}% on {100 * self.share:.4g}% of all chips, {self.confidence:.0%} sure"
