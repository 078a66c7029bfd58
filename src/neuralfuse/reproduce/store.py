"""Finished steps on disk, each in a folder named after what it depends on: done once, checked before use."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuralfuse.errors import FileFormatError
from neuralfuse.files import read_json, write_json

SCHEMA = "neuralfuse/step/1"
MARKER, PROGRESS, ERROR, LOCK = "step.json", "progress.json", "error.json", ".lock"
LEFT_BEHIND = ("checkpoint.safetensors", "training.json", "evaluation.json")  # in the marker, or needed no longer


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

    def record(self, name: str) -> dict[str, Any] | None:
        """Return a finished step's record (``config``, ``result``, ``run``), or None where it is not finished.

        Raises:
            FileFormatError: the step is damaged.
        """
        folder = self.folder(name)
        if not (folder / MARKER).exists():
            return None
        marker = read_json(folder / MARKER, SCHEMA)
        body: dict[str, Any] = {key: marker.get(key) for key in ("config", "result", "run", "files")}
        if marker.get("digest") != _digest(body):
            raise FileFormatError(f"{folder / MARKER} must be as it was written: it is damaged.")
        for file, digest in body["files"].items():
            path = folder / file
            if not path.exists() or _file_digest(path) != digest:
                raise FileFormatError(f"{path} must be as it was written: it is missing or damaged.")
        return body

    def finish(self, name: str, config: Mapping[str, Any], result: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """Mark a step as finished; the files in its folder, but for checkpoints, belong to it from now on."""
        folder = self.folder(name)
        for file in (*LEFT_BEHIND, PROGRESS, ERROR):
            (folder / file).unlink(missing_ok=True)
        kept = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        files = {path.name: _file_digest(path) for path in kept if path.name != MARKER}
        body = {"config": dict(config), "result": dict(result), "run": dict(run), "files": files}
        write_json(folder / MARKER, {"schema": SCHEMA, "digest": _digest(body), **body})

    def discard(self, name: str) -> None:
        """Remove all that is there of a step, but for its lock."""
        for path in sorted(self.folder(name).glob("*"), reverse=True):
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a step, alone; whoever comes second waits. A lock ends with the process that holds it."""
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as file:
            _lock(file, wait=True)
            yield

    def is_held(self, name: str) -> bool:
        """Say whether some process is at work on a step."""
        path = self.folder(name) / LOCK
        if not path.exists():
            return False
        with path.open("w") as file:
            return not _lock(file, wait=False)

    def tell(self, name: str, **progress: Any) -> None:
        """Leave a note of how far a step is, for whoever looks."""
        write_json(self.folder(name) / PROGRESS, {**progress, "time": time.time()})

    def progress(self, name: str) -> dict[str, Any]:
        """Return the latest note; empty where there is none."""
        return _note(self.folder(name) / PROGRESS)

    def fail(self, name: str, message: str) -> None:
        """Keep why a step failed."""
        write_json(self.folder(name) / ERROR, {"error": message})

    def failure(self, name: str) -> str | None:
        """Return why a step failed the last time, if it did."""
        return _note(self.folder(name) / ERROR).get("error")

    def check_same_images(self, name: str, fingerprint: Mapping[str, Any]) -> None:
        """Raise a `FileFormatError` unless a data set is the one that the store's steps were made with."""
        path = self.root / "data" / f"{name}.json"
        if not path.exists():
            write_json(path, fingerprint)
        if read_json(path) != fingerprint:
            raise FileFormatError(
                f"the images of {name} must be those that {self.root} was made with: they differ from {path}. "
                "Pass the same --data-dir, or another --store."
            )


def _lock(file: Any, *, wait: bool) -> bool:
    import fcntl  # noqa: PLC0415

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _note(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileFormatError:
        return {}


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
