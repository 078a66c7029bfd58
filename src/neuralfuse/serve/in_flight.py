"""The limit on requests in flight, shared by HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuralfuse.serve.metrics import Metrics


class OverloadError(Exception):
    """The limit on requests in flight is reached."""


class InFlightLimit:
    """Limits how many requests a gateway handles at a time.

    Args:
        most: Largest number of requests in flight.
        metrics: Receives the number after each change.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self.most, self.metrics, self.count = most, metrics, 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot while a request is handled.

        Raises:
            OverloadError: all slots are taken.
        """
        if self.count >= self.most:
            raise OverloadError(f"the limit of {self.most} requests in flight is reached: try again.")
        self.count += 1
        self.metrics.set_in_flight(self.count)
        try:
            yield
        finally:
            self.count -= 1
            self.metrics.set_in_flight(self.count)
