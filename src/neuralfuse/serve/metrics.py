"""Prometheus metrics of a gateway."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self._requests = Counter("neuralfuse_requests", "Requests answered.", ["kind", "status"], registry=own)
        self._seconds = Histogram(
            "neuralfuse_request_seconds", "Latency of requests.", ["kind"], buckets=_SECONDS, registry=own
        )
        self._images = Counter("neuralfuse_images", "Images transformed.", registry=own)
        self._batches = Histogram("neuralfuse_batch_images", "Images per batch.", buckets=_IMAGES, registry=own)
        self._transform = Histogram(
            "neuralfuse_transform_seconds", "Time in the queue and in the transform.", buckets=_SECONDS, registry=own
        )
        self._upstream = Histogram(
            "neuralfuse_upstream_seconds", "Latency of the upstream server.", buckets=_SECONDS, registry=own
        )
        self._in_flight = Gauge("neuralfuse_requests_in_flight", "Requests in flight.", registry=own)

    def count_request(self, kind: str, status: int | str, seconds: float) -> None:
        """Count an answered request; the status is HTTP's number or gRPC's name."""
        self._requests.labels(kind, str(status)).inc()
        self._seconds.labels(kind).observe(seconds)

    def count_batch(self, images: int) -> None:
        """Count one batch of this many images."""
        self._batches.observe(images)

    def set_in_flight(self, count: int) -> None:
        """Set the number of requests in flight."""
        self._in_flight.set(count)

    @contextmanager
    def transforming(self, images: int) -> Iterator[None]:
        """Time the transform of one request's images, waiting included."""
        began = time.perf_counter()
        yield
        self._transform.observe(time.perf_counter() - began)
        self._images.inc(images)

    @contextmanager
    def calling_upstream(self) -> Iterator[None]:
        """Time one call of the upstream server."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._upstream.observe(time.perf_counter() - began)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
