"""The loop over chips. It reuses prior results, measures chips in parallel, keeps each result, and may stop early."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from neuralfuse.errors import FileFormatError
from neuralfuse.faults import Chip
from neuralfuse.files import check_writable, read_json, write_json
from neuralfuse.memory import side_by_side

SCHEMA = "neuralfuse/partial/1"


class OfChip(Protocol):
    """The result of one chip: a dataclass of JSON values."""

    @property
    def seed(self) -> int:
        """Seed of the chip."""


R = TypeVar("R", bound=OfChip)


def measure_chips(
    measure: Callable[[Chip], R],
    chips: Sequence[Chip],
    *,
    at_once: int,
    prior: Mapping[int, R] | None = None,
    report: Callable[[R], None] | None = None,
    is_enough: Callable[[Sequence[R]], bool] = lambda results: False,
) -> list[R]:
    """Measure chips and return their results in the order of the chips.

    Args:
        measure: Called with one chip; returns its result. Called on several threads, unless ``at_once`` is 1.
        chips: The chips.
        at_once: Number of chips to measure in parallel (see `Deployed.at_once`).
        prior: Results by chip seed from an interrupted run. Their chips are not measured again.
        report: Called with the result of each newly measured chip, in the order of the chips.
        is_enough: Called with all results so far after each chip. If it returns True, no more chips are measured.
    """
    prior, results = prior or {}, list[R]()

    def one(chip: Chip) -> R:
        return prior[chip.seed] if chip.seed in prior else measure(chip)

    while len(results) < len(chips) and chips[len(results)].seed in prior:
        results.append(prior[chips[len(results)].seed])
        if is_enough(results):
            return results
    with closing(side_by_side(one, chips[len(results) :], at_once)) as measured:
        for result in measured:
            results.append(result)
            if report is not None and result.seed not in prior:
                report(result)
            if is_enough(results):
                break
    return results


class PartialRecord:
    """The results of a measurement so far, chip by chip, in a file from which an interrupted run is resumed.

    Args:
        path: The file; None keeps nothing.
        config: Everything that the results depend on.
        resume: Whether to read the results of an interrupted run. Otherwise the first result overwrites them.
    Raises:
        FileFormatError: the file is damaged, or belongs to another measurement.
        OutputError: the folder cannot be written.
    """

    def __init__(self, path: Path | None, config: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self.config = path, config
        self._results: dict[str, list[dict[str, Any]]] = {}
        if path is not None:
            check_writable(path.parent)
            if resume and path.exists():
                self._results = _read(path, config)

    def prior(self, kind: type[R], part: str = "") -> dict[int, R]:
        """Return the prior results of one part of the measurement, by chip seed."""
        try:
            found = [kind(**entry) for entry in self._results.get(part, [])]
            return {int(one.seed): one for one in found}
        except (TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(
                f"{self.path} must hold the results of chips: got {error!r}. Omit --resume."
            ) from error

    def add(self, result: OfChip, part: str = "") -> int:
        """Keep one more result; return the number of results in its part."""
        own = self._results.setdefault(part, [])
        own.append(asdict(result))  # type: ignore[call-overload]
        if self.path is not None:
            write_json(self.path, {"schema": SCHEMA, "config": dict(self.config), "per_chip": self._results})
        return len(own)

    def remove(self) -> None:
        """Remove the file after the measurement is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path, config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    kept = read_json(path)
    if kept.get("schema") not in (SCHEMA, *_BEFORE):
        raise FileFormatError(f"{path} must have schema {SCHEMA!r}: got {kept.get('schema')!r}.")
    if kept.get("config") != config:
        raise FileFormatError(
            f"{path} must belong to the same measurement to be resumed: its model, data, chips or options differ. "
            "Pass the same options, or omit --resume."
        )
    try:
        return _BEFORE[kept["schema"]](kept) if kept["schema"] in _BEFORE else dict(kept["per_chip"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} must hold the results of chips: got {error!r}. Omit --resume.") from error


def _of_one_part(kept: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {"": kept["per_chip"]}


def _of_plan(kept: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of a plan. The old file has one list per set of inputs; chip seeds are 45000, 45002, ..."""
    return {
        part: [
            {"seed": 45_000 + 2 * place, "accuracies": list(values)}
            for place, values in enumerate(zip(*by_inputs, strict=True))
        ]
        for part, by_inputs in kept["known"].items()
    }


_BEFORE: dict[str, Callable[[Mapping[str, Any]], dict[str, list[dict[str, Any]]]]] = {
    # Schemas of earlier versions. Their measurements can be resumed.
    "neuralfuse/partial-evaluation/1": _of_one_part,
    "neuralfuse/partial-comparison/1": _of_one_part,
    "neuralfuse/partial-plan/1": _of_plan,
}
