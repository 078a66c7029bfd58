"""The records that a report shows: finding them below a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralfuse.errors import DataError

KINDS = ("table", "comparison", "evaluation", "portrait", "plan", "black-box", "choice", "tuning")


@dataclass(frozen=True)
class Found:
    """One record.

    Attributes:
        path: The file, relative to the folder of the report.
        kind: The second part of the record's schema, one of `KINDS`.
        record: The record.
    """

    path: Path
    kind: str
    record: Mapping[str, Any]

    @property
    def anchor(self) -> str:
        """The name that links on the page use."""
        words = "-".join(part for part in "".join(c if c.isalnum() else "-" for c in str(self.path)).split("-") if part)
        return f"{words}-{hashlib.sha256(str(self.path).encode()).hexdigest()[:6]}"

    @property
    def command(self) -> str:
        """The command that made the record; empty if Python code or an earlier version made it.

        Words in capitals stand for files.
        """
        return str(self.record.get("run", {}).get("command", ""))


def collect(folder: Path) -> tuple[list[Found], list[Path]]:
    """Return the records below a folder, tables first, and the files that are not complete JSON.

    Folders of steps and hidden files are skipped.

    Raises:
        DataError: there is no record.
    """
    found, damaged = [], []
    for path in sorted(folder.rglob("*.json")):
        below = path.relative_to(folder)
        if any(part.startswith(".") or part == "steps" for part in below.parts):
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            damaged.append(below)
            continue
        kind = _kind(record)
        if kind is not None:
            found.append(Found(below, kind, record))
    if not found:
        raise DataError(
            f"{folder} must hold records to report on: it holds none of {', '.join(KINDS)}. Make some with "
            "neuralfuse reproduce, compare, evaluate, portrait or plan."
        )
    return sorted(found, key=lambda one: (KINDS.index(one.kind), _number(one), str(one.path))), damaged


def _kind(record: Any) -> str | None:
    """Return which of `KINDS` a record is; None for other JSON."""
    parts = str(record.get("schema", "")).split("/") if isinstance(record, dict) else []
    return parts[1] if len(parts) == 3 and parts[0] == "neuralfuse" and parts[1] in KINDS else None


def _number(one: Found) -> int:
    digits = "".join(filter(str.isdigit, str(one.record.get("table", ""))))
    return int(digits or 0)


def of_kind(found: list[Found], kind: str) -> Iterator[Found]:
    """Yield the records of a kind."""
    return (one for one in found if one.kind == kind)
