"""The records below a folder, and the commands that made them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralfuse.errors import DataError

KINDS = ("table", "comparison", "evaluation", "portrait", "plan")


@dataclass(frozen=True)
class Found:
    """One record.

    Attributes:
        path: Where it lies, below the folder that was looked through.
        kind: The second part of its schema, one of `KINDS`.
        record: The record.
    """

    path: Path
    kind: str
    record: Mapping[str, Any]

    @property
    def anchor(self) -> str:
        """A name for links."""
        return "-".join(part for part in "".join(c if c.isalnum() else "-" for c in str(self.path)).split("-") if part)

    @property
    def command(self) -> str:
        """The command that makes such a record; capitals stand for what it does not hold."""
        config = self.record["config"]
        if self.kind == "table":
            options = f"--scale {config['scale']} --faults {config['faults']}"
            return f"neuralfuse reproduce {self.record['table']} {options}"
        if self.kind == "comparison":
            methods = " ".join(dict.fromkeys(row["method"] for row in self.record["rows"]))
            faults = " ".join(dict.fromkeys(f"--faults {row['faults']}" for row in self.record["rows"]))
            rates = " ".join(dict.fromkeys(f"--rates {row['ber']:g}" for row in self.record["rows"]))
            options = f"--scale {config['scale']} --base {config['base']} --chips {config['chips']}"
            return f"neuralfuse compare {methods} {options} {faults} {rates} --data DATA"
        fuse = "" if config.get("fuse") is None else " FUSE"
        if self.kind == "evaluation":
            options = f"--ber {self.record['ber']:g} --faults {self.record['ber_kind']} --chips {self.record['chips']}"
            return f"neuralfuse evaluate{fuse} --base BASE --data {config['data']['name']} {options}"
        if self.kind == "portrait":
            options = f"--ber {config['faults']['ber']:g} --faults {config['faults']['kind']}"
            return f"neuralfuse portrait FUSE --base BASE --data {config['data']['name']} {options}"
        return "neuralfuse plan --base BASE --target TARGET"


def collect(folder: Path) -> list[Found]:
    """Return all records below a folder that a report shows, tables first.

    Raises:
        DataError: there is none.
    """
    found = [one for path in sorted(folder.rglob("*.json")) if (one := _open(path, folder)) is not None]
    if not found:
        raise DataError(
            f"{folder} must hold records to report on: there is none of {', '.join(KINDS)} below it. Make some with "
            "neuralfuse reproduce, compare, evaluate, portrait or plan."
        )
    return sorted(found, key=lambda one: (KINDS.index(one.kind), _number(one), str(one.path)))


def _open(path: Path, folder: Path) -> Found | None:
    below = path.relative_to(folder)
    if any(part.startswith(".") or part == "steps" for part in below.parts):
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parts = str(record.get("schema", "")).split("/") if isinstance(record, dict) else []
    if len(parts) != 3 or parts[0] != "neuralfuse" or parts[1] not in KINDS:
        return None
    return Found(below, parts[1], record)


def _number(one: Found) -> int:
    digits = "".join(filter(str.isdigit, str(one.record.get("table", ""))))
    return int(digits or 0)


def of_kind(found: list[Found], kind: str) -> Iterator[Found]:
    """Yield the records of a kind."""
    return (one for one in found if one.kind == kind)
