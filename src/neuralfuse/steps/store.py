"""Finished steps on disk, each in a folder named after what it depends on: done once, checked before use."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from neuralfuse.errors import DataError, FileFormatError, OutputError
from neuralfuse.files import read_json, write_json

SCHEMA = "neuralfuse/step/1"
MARKER, PROGRESS, ERROR, LOCK = "step.json", "progress.json", "error.json", ".lock"
LEFT_BEHIND = ("checkpoint.safetensors", "training.json", "evaluation.json", PROGRESS, ERROR)  # of no use afterwards
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system without them


def address(kind: str, config: Mapping[str, Any]) -> str:
    """Return the name of a step's folder: its kind and a digest of all that it depends on."""
    return f"{kind}-{_digest({'schema': SCHEMA, 'config': config})[:16]}"


class Store:
    """A folder of steps. Several processes and machines may share it.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str) -> Path:
        """Return the folder of the step with this address."""
        return self.root / "steps" / name

    def record(self, name: str, *, whole: bool = True) -> dict[str, Any] | None:
        """Return a finished step's record (``config``, ``result``, ``run``), or None where it is not finished.

        A step is finished as long as what it needed is what it was made from.

        Args:
            name: Its address.
            whole: Whether to check its files too, and not the record alone.
        Raises:
            FileFormatError: the step is damaged.
        """
        marker = self._marker(name)
        if marker is None or any(self._content(need) != content for need, content in marker["needs"].items()):
            return None
        for file, digest in marker["files"].items() if whole else ():
            if file_digest(self.folder(name) / file) != digest:
                raise FileFormatError(
                    f"{self.folder(name) / file} must be as it was written: it is missing or damaged."
                )
        return marker

    def finish(
        self,
        name: str,
        config: Mapping[str, Any],
        result: Mapping[str, Any],
        run: Mapping[str, Any],
        needs: Sequence[str] = (),
    ) -> None:
        """Mark a step as finished; the files in its folder, but for checkpoints, belong to it from now on."""
        folder = self.folder(name)
        kept = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
        files = {path.name: file_digest(path) for path in kept if path.name not in (*LEFT_BEHIND, MARKER)}
        made = {"config": dict(config), "result": dict(result), "files": files}
        made["needs"] = {need: self._content(need) for need in needs}
        body = {**made, "content": _digest(made), "run": dict(run)}
        write_json(folder / MARKER, {"schema": SCHEMA, "digest": _digest(body), **body})
        for path in folder.iterdir():  # only now: had the marker not been written, they would be gone on from
            if path.name in LEFT_BEHIND or (path.name.startswith(".") and path.name != LOCK):
                path.unlink(missing_ok=True)

    def discard(self, name: str) -> None:
        """Remove all that is there of a step, but for its lock."""
        for path in sorted(self.folder(name).glob("*"), reverse=True):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Try to hold a step, alone, and say whether it worked. A lock ends with the process that holds it."""
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        try:
            yield True
        finally:
            lock.release()

    def is_held(self, name: str) -> bool:
        """Say whether some process is at work on a step."""
        if not (self.folder(name) / LOCK).exists():
            return False
        with self.locked(name) as free:
            return not free

    def tell(self, name: str, **progress: Any) -> None:
        """Leave a note of how far a step is, for whoever looks; where there is no room for one, there is none."""
        with suppress(OutputError):
            write_json(self.folder(name) / PROGRESS, {**progress, "time": time.time()})

    def progress(self, name: str) -> dict[str, Any]:
        """Return the latest note; empty where there is none."""
        return _note(self.folder(name) / PROGRESS)

    def fail(self, name: str, message: str) -> None:
        """Keep why a step failed, if there is room."""
        with suppress(OutputError):
            write_json(self.folder(name) / ERROR, {"error": message})

    def failure(self, name: str) -> str | None:
        """Return why a step failed the last time, if it did."""
        return _note(self.folder(name) / ERROR).get("error")

    def check_same_images(self, name: str, config: Mapping[str, Any]) -> None:
        """Raise a `DataError` unless a data set is the one that the store's steps were made with."""
        path = self.root / "data" / f"{name}.json"
        known = _note(path)
        if not known:
            write_json(path, config)
        elif known != config:
            raise DataError(
                f"the images of {name} must be those that {self.root} was made with: they differ from {path}. "
                "Pass the same --data-dir, or another --out."
            )

    def _marker(self, name: str) -> dict[str, Any] | None:
        path = self.folder(name) / MARKER
        if not path.exists():
            return None
        marker = read_json(path, SCHEMA)
        body = {key: marker.get(key) for key in ("config", "result", "files", "needs", "content", "run")}
        if marker.get("digest") != _digest(body):
            raise FileFormatError(f"{path} must be as it was written: it is damaged.")
        return body

    def _content(self, name: str) -> str | None:
        """Return a digest of what a finished step made, whatever its run took; None where it is none."""
        content = _note(self.folder(name) / MARKER).get("content")
        return None if content is None else str(content)


def _note(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileFormatError:
        return {}


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 digest of a file, None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
