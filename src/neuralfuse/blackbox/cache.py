"""A cache of a black-box model's answers, and the count of images sent to it."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralfuse.errors import OutputError


class AnswerCache:
    """Answers in an SQLite file, committed with every batch; in memory without a file.

    Args:
        path: The file, made if it does not exist; None for memory.

    Raises:
        OutputError: the file cannot be written, or is not a cache of answers.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(":memory:" if path is None else path)
        except (sqlite3.Error, OSError) as error:
            raise _cache_error(path, error) from error
        try:
            self.connection.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID")
            self.connection.execute("CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER)")
            self.connection.commit()
        except sqlite3.Error as error:
            self.connection.close()
            raise _cache_error(path, error) from error

    @property
    def asked(self) -> int:
        """Images sent so far, retries included."""
        with self._checked():
            found = self.connection.execute("SELECT value FROM counts WHERE name = 'asked'").fetchone()
        return 0 if found is None else int(found[0])

    def count(self, images: int) -> None:
        """Count images that are about to be sent."""
        with self._checked(), self.connection:
            self.connection.execute(
                "INSERT INTO counts VALUES ('asked', :images) ON CONFLICT (name) DO UPDATE SET value = value + :images",
                {"images": images},
            )

    def get(self, keys: list[bytes]) -> dict[bytes, NDArray[Any]]:
        """Return the cached answers among these keys."""
        found = {}
        with self._checked():
            for key in dict.fromkeys(keys):
                row = self.connection.execute("SELECT row FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = np.load(io.BytesIO(row[0]), allow_pickle=False)
        return found

    def put(self, answers: dict[bytes, NDArray[Any]]) -> None:
        """Store answers."""
        with self._checked(), self.connection:
            for key, row in answers.items():
                data = io.BytesIO()
                np.save(data, row, allow_pickle=False)
                self.connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, data.getvalue()))

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, EOFError) as error:
            raise _cache_error(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self.connection.close()


def _cache_error(path: Path | None, error: Exception) -> OutputError:
    if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR):
        return OutputError(f"--cache {path} must be writable: {error}. The same command resumes from its answers.")
    return OutputError(f"--cache {path} must be a cache of answers, or a new file: {error}.")
