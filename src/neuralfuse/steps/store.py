"""Finished steps on disk, each in a folder named after a digest of its configuration, and checked before use."""

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
# Files that are removed when a step finishes.
LEFT_BEHIND = ("checkpoint.safetensors", "training.json", "evaluation.json", PROGRESS, ERROR)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # errors of a file system without locks


def address(kind: str, config: Mapping[str, Any]) -> str:
    """Return the name of a step's folder: its kind and a digest of its configuration."""
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
        """Return a finished step's record (``config``, ``result``, ``run``), or None if the step is not finished.

        A step no longer counts as finished once a step that it was made from has changed.

        Args:
            name: Address of the step.
            whole: Whether to check the step's files in addition to its record.
        Raises:
            FileFormatError: the step is damaged.
        """
        marker = self._marker(name)
        if marker is None or any(self._content(need) != content for need, content in marker["needs"].items()):
            return None
        for file, digest in marker["files"].items() if whole else ():
            if file_digest(self.folder(name) / file) != digest:
                raise FileFormatError(
                    f"{self.folder(name) / file} must not change after it was written: it is missing or damaged."
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
        """Mark a step as finished. Keep the files in its folder as its result, but remove checkpoints and notes."""
        folder = self.folder(name)
        kept = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
        files = {path.name: file_digest(path) for path in kept if path.name not in (*LEFT_BEHIND, MARKER)}
        made = {"config": dict(config), "result": dict(result), "files": files}
        made["needs"] = {need: self._content(need) for need in needs}
        body = {**made, "content": _digest(made), "run": dict(run)}
        write_json(folder / MARKER, {"schema": SCHEMA, "digest": _digest(body), **body})
        for path in folder.iterdir():  # after the marker: without it, they are needed to resume
            if path.name in LEFT_BEHIND or (path.name.startswith(".") and path.name != LOCK):
                path.unlink(missing_ok=True)

    def discard(self, name: str) -> None:
        """Remove all files of a step except its lock."""
        for path in sorted(self.folder(name).glob("*"), reverse=True):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Try to lock a step; yield whether it worked. A lock ends with the process that holds it."""
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
        """Say whether a process is doing the step. In a store that may only be read, nothing is known: False."""
        if not (self.folder(name) / LOCK).exists():
            return False
        with suppress(PermissionError), self.locked(name) as free:
            return not free
        return False

    def tell(self, name: str, **progress: Any) -> None:
        """Write a note of a step's progress, for display. A full disk is ignored."""
        with suppress(OutputError):
            write_json(self.folder(name) / PROGRESS, {**progress, "time": time.time()})

    def progress(self, name: str) -> dict[str, Any]:
        """Return the latest progress note; empty if there is none."""
        return _note(self.folder(name) / PROGRESS)

    def fail(self, name: str, message: str) -> None:
        """Write the reason why a step failed. A full disk is ignored."""
        with suppress(OutputError):
            write_json(self.folder(name) / ERROR, {"error": message})

    def failure(self, name: str) -> str | None:
        """Return why a step's last try failed; None if it did not."""
        return _note(self.folder(name) / ERROR).get("error")

    def check_same_images(self, name: str, config: Mapping[str, Any]) -> None:
        """Raise a `DataError` unless a data set has the same images as in the store's earlier steps."""
        path = self.root / "data" / f"{name}.json"
        earlier = _note(path)
        if not earlier:
            write_json(path, config)
        elif earlier != config:
            raise DataError(
                f"the images of {name} must be the same as in the earlier steps of {self.root}: they differ from "
                f"{path}. Pass the same --data-dir, or another --out."
            )

    def _marker(self, name: str) -> dict[str, Any] | None:
        path = self.folder(name) / MARKER
        if not path.exists():
            return None
        marker = read_json(path, SCHEMA)
        body = {key: marker.get(key) for key in ("config", "result", "files", "needs", "content", "run")}
        if marker.get("digest") != _digest(body):
            raise FileFormatError(f"{path} must not change after it was written: it is damaged.")
        return body

    def _content(self, name: str) -> str | None:
        """Return a digest of a finished step's configuration and result, without its run; None if it is unfinished."""
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
    """Return the SHA-256 digest of a file; None if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
