"""The records in results/, each read once. Where something lies in a record is said here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralfuse.compare.best import Difference
from neuralfuse.evaluation import mean, t_interval

RESULTS = Path(__file__).parents[1]
# The comparisons that pages speak of: a short name, the file, and the kind of faults.
COMPARISONS = {
    "map": ("gtsrb-vgg11-cpu-reference", "reference"),
    "another base": ("gtsrb-vgg11-cpu-reference-another-base", "reference"),
    "flips": ("gtsrb-vgg11-cpu-flip", "flip"),
    "stuck": ("gtsrb-vgg11-cpu-stuck", "stuck"),
    "longer": ("gtsrb-vgg11-ten-times-longer-reference", "reference"),
    "signs, stuck": ("one-chip-gtsrb-vgg11", "stuck"),
    "signs, map": ("one-chip-gtsrb-vgg11", "reference"),
    "photos, stuck": ("one-chip-cifar10-vgg11", "stuck"),
    "photos, map": ("one-chip-cifar10-vgg11", "reference"),
    "tuned": ("tuned-cifar10-vgg11", "reference"),
}


class PageError(ValueError):
    """A page asks for something that no record has, or in a way that cannot be read."""


class Records:
    """The records below a folder, each read once."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self._folder = folder
        self._read: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return a record by its path below the folder."""
        if name not in self._read:
            path = self._folder / name
            if not path.is_file():
                raise PageError(f"there must be a record results/{name}: got no such file.")
            self._read[name] = json.loads(path.read_text(encoding="utf-8"))
        return self._read[name]

    def folder(self, name: str) -> list[dict[str, Any]]:
        """Return the records of a folder, by file name."""
        return [self[f"{name}/{path.name}"] for path in sorted((self._folder / name).glob("*.json"))]

    def comparison(self, name: str) -> Comparison:
        """Return one of `COMPARISONS`."""
        file, faults = COMPARISONS[name]
        return Comparison(name, self[f"comparisons/{file}.json"], faults)

    def paper(self, table: str, **of: Any) -> dict[str, Any]:
        """Return the one measured row of a table of the paper that is of this, e.g. ``bits=6``."""
        measured = (row for row in self[f"paper/{table}.json"]["rows"] if row["measured"])
        rows: list[dict[str, Any]] = [row for row in measured if of.items() <= row["of"].items()]
        if len(rows) != 1:
            raise PageError(f"{table} must have one measured row of {of}: got {len(rows)}.")
        return rows[0]


@dataclass(frozen=True)
class Comparison:
    """One comparison under one kind of faults.

    Attributes:
        name: One of `COMPARISONS`.
        record: The whole record.
        faults: The kind of faults whose rows are meant.
    """

    name: str
    record: Mapping[str, Any]
    faults: str

    def rows(self, ber: float | None = None) -> Iterator[Mapping[str, Any]]:
        """Yield the measured rows, of one rate or of all."""
        for row in self.record["rows"]:
            if row["measured"] and row["faults"] == self.faults and ber in (None, row["ber"]):
                yield row

    def row(self, method: str, ber: float | None = None) -> Mapping[str, Any]:
        """Return the row of a method: at a rate, or the first one, for what does not depend on the rate."""
        for row in self.rows(ber):
            if row["method"] == method:
                return row
        at = "" if ber is None else f" at {100 * ber:g}%"
        raise PageError(f"the comparison {self.name!r} must have measured {method}{at}: got no such row.")

    def gain(self, method: str, other: str, ber: float) -> Difference:
        """Return how much more accurate one method is than another at a rate, paired by chip."""
        return Difference.of(self.row(method, ber), self.row(other, ber))

    def training_minutes(self, method: str) -> float:
        """Return how long the training of a method took; a NeuralFuse's is that of the comparison's only module."""
        row, steps = self.row(method), self.record["steps"]
        if row["stages"][0]["method"] == "neuralfuse":
            (made,) = (step for step in steps if step.startswith("module-"))
        else:
            made = steps[row["step"]]["protection"]
        return float(self.record["run"]["steps"][made]["seconds"]) / 60


def paired(one: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
    """Return PA(NF) of one measurement minus that of another, over the same chips.

    Args:
        one: The values of each chip, as lists by name: "seed", "pa", "pa_nf".
        other: The same of the other measurement, of the same model.
    """
    if (one["seed"], one["pa"]) != (other["seed"], other["pa"]):
        raise PageError("two measurements that are paired must be of one model on the same chips: got different ones.")
    points = [first - second for first, second in zip(one["pa_nf"], other["pa_nf"], strict=True)]
    return Difference(mean(points), t_interval(points))


def per_chip(record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of each chip in an evaluation's record as lists by name."""
    return {name: [chip[name] for chip in record["per_chip"]] for name in ("seed", "pa", "pa_nf")}
