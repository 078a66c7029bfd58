"""Queries to a black-box model within limits: a budget, a rate, retries, and no image twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from neuralfuse.blackbox.answers import Answers
from neuralfuse.blackbox.boxes import Box
from neuralfuse.blackbox.cache import AnswerCache
from neuralfuse.errors import AnswerError, BudgetError, BusyError, require

_LONGEST = 60.0  # seconds of delay before a retry
T = TypeVar("T")


def retry(
    ask: Callable[[], T],
    retries: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    on_retry: Callable[[BusyError, float], None] = lambda error, seconds: None,
) -> T:
    """Call ``ask``, and retry with growing delays while it raises `BusyError`.

    Args:
        ask: The query.
        retries: Number of retries.
        sleep: Waits for some seconds.
        on_retry: Called before each delay, with the error and the seconds.

    Raises:
        BusyError: the last retry failed, too.
    """
    for attempt in range(retries):
        try:
            return ask()
        except BusyError as error:
            seconds = min(_LONGEST, 0.5 * 2**attempt if error.after is None else error.after)
            on_retry(error, seconds)
            sleep(seconds)
    return ask()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the queries to a model.

    Attributes:
        cache: SQLite file for answers. An image whose answer is in it is not sent again, not even by a later run. It
            is valid only as long as the model stays the same.
        budget: Images that may be sent, retries included, over all runs with this cache; 0 for no limit.
        per_second: Images per second; 0 for no limit.
        retries: Retries of a request that failed for a temporary reason.
        batch: Images per request.
    """

    cache: Path | None = None
    budget: int = 0
    per_second: float = 0.0
    retries: int = 6
    batch: int = 64

    def __post_init__(self) -> None:
        require(self.budget >= 0, f"budget must be at least 0: got budget={self.budget}.")
        require(self.per_second >= 0, f"per_second must be at least 0: got per_second={self.per_second}.")
        require(self.retries >= 0, f"retries must be at least 0: got retries={self.retries}.")
        require(self.batch >= 1, f"batch must be at least 1: got batch={self.batch}.")


class LimitedBox:
    """A black-box model that is queried within limits. Close it, or use it as a context manager.

    Args:
        box: The model.
        classes: Number of its classes.
        limits: Limits on the queries.
        kind: Kind of its answers, see `Answers.of`.
        clock: Returns seconds.
        sleep: Waits for some seconds.

    Attributes:
        asked: Images sent, retries included.
        found: Images answered from the cache.
        tried_again: Requests retried.
    """

    def __init__(
        self,
        box: Box,
        *,
        classes: int,
        limits: Limits | None = None,
        kind: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.box, self.classes, self.kind = box, classes, kind
        self.limits = limits or Limits()
        self.asked = self.found = self.tried_again = 0
        self._clock, self._sleep = clock, sleep
        self._free_at = -float("inf")
        self._cache = AnswerCache(self.limits.cache)

    def __enter__(self) -> LimitedBox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the cache and the model."""
        self._cache.close()
        self.box.close()

    def __call__(self, inputs: Tensor, progress: Callable[[int, int], None] = lambda done, total: None) -> Answers:
        """Return the answers for inputs (N, C, H, W) in the model's own space.

        Args:
            inputs: On any device.
            progress: Called with the number of images answered, and their total.

        Raises:
            BudgetError: the query exceeds the budget. If it would from the start, no image is sent.
            AnswerError: the model refuses the query, or its output is invalid.
            BusyError: the last retry failed, too.
        """
        require(len(inputs) > 0, "a query must have at least one image: got none.")
        x = np.ascontiguousarray(inputs.detach().cpu().numpy(), dtype=np.float32)
        keys = [self._key(one) for one in x]
        known = self._cache.get(keys)
        new = {key: place for place, key in enumerate(keys) if key not in known}  # equal images once
        left = self.limits.budget - self._cache.asked
        if self.limits.budget and len(new) > left:
            raise BudgetError(
                f"{len(new)} images must be within the budget: {max(0, left)} of {self.limits.budget} are left. Raise "
                "--budget, or query fewer with --images."
            )
        self.found += len(keys) - len(new)
        places = list(new.values())
        progress(len(known), len(known) + len(new))
        for start in range(0, len(places), self.limits.batch):
            part = places[start : start + self.limits.batch]
            answers = dict(zip((keys[place] for place in part), self._ask(x[part]), strict=True))
            self._cache.put(answers)
            known |= answers
            progress(len(known), len(set(keys)))
        try:
            values = np.stack([known[key] for key in keys])
        except ValueError as error:
            raise AnswerError(f"{self.box.name} must answer all images in the same form: {error}.") from error
        return Answers.of(values, classes=self.classes, kind=self.kind)

    def _ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        return retry(lambda: self._ask_once(x), self.limits.retries, sleep=self._sleep, on_retry=self._count_retry)

    def _ask_once(self, x: NDArray[np.float32]) -> NDArray[Any]:
        self._wait(len(x))
        if self.limits.budget and self._cache.asked + len(x) > self.limits.budget:
            raise BudgetError(f"the budget of {self.limits.budget} images must cover retries, too: it is spent.")
        self.asked += len(x)
        self._cache.count(len(x))
        return self.box.ask(x)

    def _count_retry(self, error: BusyError, seconds: float) -> None:
        self.tried_again += 1

    def _wait(self, images: int) -> None:
        """Wait as long as the rate limit requires."""
        if self.limits.per_second:
            now = self._clock()
            if now < self._free_at:
                self._sleep(self._free_at - now)
            self._free_at = max(now, self._free_at) + images / self.limits.per_second

    def _key(self, one: NDArray[np.float32]) -> bytes:
        digest = hashlib.sha256(f"{self.box.key}\n{one.shape}\n".encode())
        digest.update(one.tobytes())
        return digest.digest()
