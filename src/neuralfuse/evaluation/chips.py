"""The one loop over chips: known results first, the others side by side, each kept as it comes, until it is enough."""

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
    """What was measured on one chip: a dataclass of JSON values."""

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
    """Measure chips and return their results in the chips' order.

    Args:
        measure: Takes one chip. Called on several threads, unless ``at_once`` is 1.
        chips: The chips.
        at_once: How many are measured at a time (see `Deployed.at_once`).
        prior: Results by chip seed from an interrupted run. Those chips are not measured again.
        report: Called after each newly measured chip, in their order.
        is_enough: Called with the results after each chip. The rest is left out once it says yes.
    """
    known, results = prior or {}, list[R]()

    def one(chip: Chip) -> R:
        return known[chip.seed] if chip.seed in known else measure(chip)

    while len(results) < len(chips) and chips[len(results)].seed in known:
        results.append(known[chips[len(results)].seed])
        if is_enough(results):
            return results
    with closing(side_by_side(one, chips[len(results) :], at_once)) as measured:
        for result in measured:
            results.append(result)
            if report is not None and result.seed not in known:
                report(result)
            if is_enough(results):
                break
    return results


class PartialRecord:
    """What an interrupted measurement leaves: results by chip, under the configuration that they belong to.

    Args:
        path: The file; None keeps nothing.
        config: All that the results depend on.
        resume: Read what an interrupted run left there. Otherwise the first result replaces it.
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
        """Return the results of one part of the measurement, by chip seed."""
        found = (kind(**entry) for entry in self._results.get(part, []))
        return {one.seed: one for one in found}

    def add(self, result: OfChip, part: str = "") -> int:
        """Keep one more result; return how many there are in its part."""
        own = self._results.setdefault(part, [])
        own.append(asdict(result))  # type: ignore[call-overload]
        if self.path is not None:
            write_json(self.path, {"schema": SCHEMA, "config": dict(self.config), "per_chip": self._results})
        return len(own)

    def remove(self) -> None:
        """Remove the file: the measurement is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path, config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    kept = read_json(path)
    if kept.get("schema") not in (SCHEMA, *_BEFORE):
        raise FileFormatError(f"{path} must have schema {SCHEMA!r}: got {kept.get('schema')!r}.")
    if kept.get("config") != config:
        raise FileFormatError(
            f"{path} must belong to this very measurement to be resumed: its model, data, chips or options differ. "
            "Pass the same options, or leave --resume out."
        )
    try:
        return _BEFORE[kept["schema"]](kept) if kept["schema"] in _BEFORE else dict(kept["per_chip"])
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} must hold results of chips: {error!r}.") from error


def _of_one_part(kept: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {"": kept["per_chip"]}


def _of_plan(kept: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of a plan: there, accuracies stood input by input, on chips of the seeds 45000, 45002, ..."""
    return {
        part: [
            {"seed": 45_000 + 2 * place, "accuracies": list(values)}
            for place, values in enumerate(zip(*known, strict=True))
        ]
        for part, known in kept["known"].items()
    }


_BEFORE: dict[str, Callable[[Mapping[str, Any]], dict[str, list[dict[str, Any]]]]] = {
    # schemas of earlier versions, whose measurements are resumed
    "neuralfuse/partial-evaluation/1": _of_one_part,
    "neuralfuse/partial-comparison/1": _of_one_part,
    "neuralfuse/partial-plan/1": _of_plan,
}
