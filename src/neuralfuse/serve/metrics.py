"""What a gateway counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one gateway."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self._requests = Counter("neuralfuse_requests", "Requests answered.", ["kind", "status"], registry=own)
        self._seconds = Histogram(
            "neuralfuse_request_seconds", "Time to an answer.", ["kind"], buckets=_SECONDS, registry=own
        )
        self._images = Counter("neuralfuse_images", "Images transformed.", registry=own)
        self._batches = Histogram(
            "neuralfuse_batch_images", "Images transformed at once.", buckets=_IMAGES, registry=own
        )
        self._transform = Histogram(
            "neuralfuse_transform_seconds", "Waiting and transforming.", buckets=_SECONDS, registry=own
        )
        self._upstream = Histogram(
            "neuralfuse_upstream_seconds", "Time of the server behind.", buckets=_SECONDS, registry=own
        )
        self._in_flight = Gauge("neuralfuse_requests_in_flight", "Requests that are worked on.", registry=own)

    def request(self, kind: str, status: int | str, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(kind, str(status)).inc()  # HTTP's number or gRPC's name
        self._seconds.labels(kind).observe(seconds)

    def batch(self, images: int) -> None:
        """Count images that are transformed at once."""
        self._batches.observe(images)

    def in_flight(self, count: int) -> None:
        """Say how many requests are worked on."""
        self._in_flight.set(count)

    @contextmanager
    def transforming(self, images: int) -> Iterator[None]:
        """Time the transform of a request's images."""
        began = time.perf_counter()
        yield
        self._transform.observe(time.perf_counter() - began)
        self._images.inc(images)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Time the server behind."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._upstream.observe(time.perf_counter() - began)

    def text(self) -> bytes:
        """Return all of it, as Prometheus reads it."""
        return generate_latest(self.registry)
