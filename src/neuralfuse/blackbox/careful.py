"""Asking with care: no question twice, no more than was agreed, no faster than allowed, again where that may help."""

from __future__ import annotations

import hashlib
import io
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from neuralfuse.blackbox.answers import Answers
from neuralfuse.blackbox.boxes import Box
from neuralfuse.errors import AnswerError, BudgetError, BusyError, OutputError, require

_LONGEST = 60.0  # seconds between two tries
T = TypeVar("T")


def again(
    ask: Callable[[], T],
    retries: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    told: Callable[[BusyError, float], None] = lambda error, seconds: None,
) -> T:
    """Return what a question returns, asked again, later and later, where it fails for a reason that may pass.

    Args:
        ask: The question.
        retries: How often it is asked again.
        sleep: Waits for seconds.
        told: Called before each wait: why, and how many seconds.

    Raises:
        BusyError: it failed each time.
    """
    for attempt in range(retries):
        try:
            return ask()
        except BusyError as error:
            seconds = min(_LONGEST, 0.5 * 2**attempt if error.after is None else error.after)
            told(error, seconds)
            sleep(seconds)
    return ask()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a model may be asked.

    Attributes:
        cache: SQLite file for its answers; what is in it is not asked again, in this run or a later one. It is good for
            as long as the model stays the same.
        budget: Images that may be sent, every try of each counted, over all runs with this cache; 0 for any number.
        per_second: Images a second; 0 for as fast as it answers.
        retries: How often a request is tried again that failed for a reason that may pass.
        batch: Images a request.
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


class Careful:
    """A model, asked within limits. Close it, or use it as a context.

    Args:
        box: The model.
        classes: How many it knows.
        limits: How it may be asked.
        kind: What its answers are, see `Answers.of`.
        clock: Seconds.
        sleep: Waits for seconds.
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
        self._kept = _Kept(self.limits.cache)

    def __enter__(self) -> Careful:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the cache and the model."""
        self._kept.close()
        self.box.close()

    def __call__(self, inputs: Tensor, told: Callable[[int, int], None] = lambda done, total: None) -> Answers:
        """Return the answers to inputs (N, C, H, W) in the model's own space.

        Args:
            inputs: On any device.
            told: Called with how many are answered, and of how many.

        Raises:
            BudgetError: there are more questions than the budget has left; none of them was asked.
            AnswerError: the model refuses, or answers with something else.
            BusyError: it could not be asked, for all the tries.
        """
        require(len(inputs) > 0, "there must be at least one image to ask about: got none.")
        x = np.ascontiguousarray(inputs.detach().cpu().numpy(), dtype=np.float32)
        keys = [self._key(one) for one in x]
        known = self._kept.get(keys)
        new = {key: place for place, key in enumerate(keys) if key not in known}  # each once
        left = self.limits.budget - self._kept.asked
        if self.limits.budget and len(new) > left:
            raise BudgetError(
                f"{len(new)} images must be within the budget: {max(0, left)} of {self.limits.budget} are left. Raise "
                "--budget, or ask about fewer with --images."
            )
        self.found += len(keys) - len(new)
        places = list(new.values())
        told(len(known), len(known) + len(new))
        for start in range(0, len(places), self.limits.batch):
            part = places[start : start + self.limits.batch]
            answers = dict(zip((keys[place] for place in part), self._ask(x[part]), strict=True))
            self._kept.put(answers)
            known |= answers
            told(len(known), len(set(keys)))
        try:
            values = np.stack([known[key] for key in keys])
        except ValueError as error:
            raise AnswerError(f"{self.box.name} must answer alike to all images: {error}.") from error
        return Answers.of(values, classes=self.classes, kind=self.kind)

    def _ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        return again(lambda: self._ask_once(x), self.limits.retries, sleep=self._sleep, told=self._count)

    def _ask_once(self, x: NDArray[np.float32]) -> NDArray[Any]:
        self._wait(len(x))
        if self.limits.budget and self._kept.asked + len(x) > self.limits.budget:
            raise BudgetError(f"the budget of {self.limits.budget} images must cover tries too: it is spent.")
        self.asked += len(x)
        self._kept.count(len(x))
        return self.box.ask(x)

    def _count(self, error: BusyError, seconds: float) -> None:
        self.tried_again += 1

    def _wait(self, images: int) -> None:
        if self.limits.per_second:
            now = self._clock()
            if now < self._free_at:
                self._sleep(self._free_at - now)
            self._free_at = max(now, self._free_at) + images / self.limits.per_second

    def _key(self, one: NDArray[np.float32]) -> bytes:
        digest = hashlib.sha256(f"{self.box.key}\n{one.shape}\n".encode())
        digest.update(one.tobytes())
        return digest.digest()


class _Kept:
    """Answers on disk, or in memory where there is no file; a crash loses none that was put."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.base = sqlite3.connect(":memory:" if path is None else path)
        except (sqlite3.Error, OSError) as error:
            raise _no_cache(path, error) from error
        try:
            self.base.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")
            self.base.execute("CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER)")
            self.base.commit()
        except sqlite3.Error as error:
            self.base.close()
            raise _no_cache(path, error) from error

    @property
    def asked(self) -> int:
        """Images sent so far."""
        with self._checked():
            found = self.base.execute("SELECT value FROM counts WHERE name = 'asked'").fetchone()
        return 0 if found is None else int(found[0])

    def count(self, images: int) -> None:
        """Count images that are about to be sent."""
        with self._checked(), self.base:
            self.base.execute(
                "INSERT INTO counts VALUES ('asked', :images) ON CONFLICT (name) DO UPDATE SET value = value + :images",
                {"images": images},
            )

    def get(self, keys: list[bytes]) -> dict[bytes, NDArray[Any]]:
        """Return the answers that are there."""
        found = {}
        with self._checked():
            for key in dict.fromkeys(keys):
                row = self.base.execute("SELECT row FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = np.load(io.BytesIO(row[0]), allow_pickle=False)
        return found

    def put(self, answers: dict[bytes, NDArray[Any]]) -> None:
        """Keep answers."""
        with self._checked(), self.base:
            for key, row in answers.items():
                data = io.BytesIO()
                np.save(data, row, allow_pickle=False)
                self.base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, data.getvalue()))

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, EOFError) as error:
            raise _no_cache(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self.base.close()


def _no_cache(path: Path | None, error: Exception) -> OutputError:
    if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR):
        return OutputError(
            f"--cache {path} must be writable: {error}. The same command goes on from what is kept there."
        )
    return OutputError(f"--cache {path} must be a file of answers, or one to make: {error}.")
