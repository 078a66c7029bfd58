"""How many requests a gateway works on at a time, whichever door they come through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuralfuse.serve.metrics import Metrics


class FullError(Exception):
    """As many requests are worked on as may be."""


class Admission:
    """Counts the requests that are worked on.

    Args:
        most: At a time.
        metrics: Told how many there are.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.most, self.metrics, self.count = most, metrics, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place for a request.

        Raises:
            FullError: there is none.
        """
        if self.count >= self.most:
            raise FullError(f"{self.count} requests are worked on already: try again.")
        self.count += 1
        self.metrics.in_flight(self.count)
        try:
            yield
        finally:
            self.count -= 1
            self.metrics.in_flight(self.count)
