"""The best method at each level of access, and the gain of combined methods, with intervals paired by chip."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neuralfuse.evaluation import mean, t_interval

INPUTS, AS_IT_IS = "only the model's inputs", "the model, without retraining"
TRAINING, MEMORY, SMALLER = "the model, by retraining", "the memory", "a smaller model at full voltage"
LEVELS = (INPUTS, AS_IT_IS, TRAINING, MEMORY, SMALLER)


@dataclass(frozen=True)
class Difference:
    """How much more accurate one method is than another on the same chips.

    Attributes:
        points: Mean difference, in percentage points.
        interval: 95% interval of the mean difference; None for one chip.
    """

    points: float
    interval: tuple[float, float] | None

    @staticmethod
    def of(one: Mapping[str, Any], other: Mapping[str, Any]) -> Difference:
        """Return the first row's accuracy minus the second's."""
        pairs = zip(one["measured"]["per_chip"]["pa"], other["measured"]["per_chip"]["pa"], strict=True)
        points = [first - second for first, second in pairs]
        return Difference(mean(points), t_interval(points))


@dataclass(frozen=True)
class Best:
    """The most accurate method of one level of access.

    Attributes:
        level: One of `LEVELS`.
        row: The method's row in the comparison.
        gain: Its gain over the unprotected baseline.
        above: The most accurate row of the levels before this one, the unprotected baseline included.
        more: Its gain over ``above``.
    """

    level: str
    row: Mapping[str, Any]
    gain: Difference
    above: Mapping[str, Any]
    more: Difference


def level(row: Mapping[str, Any]) -> str | None:
    """Return the level of access of a method, the last of `LEVELS` that it needs; None for no protection.

    The level says what a method changes when deployed. Needs of its training, such as gradients, do not count.
    """
    needs: Collection[str] = row["needs"]
    if any(stage["method"] == "smaller" for stage in row["stages"]):
        return SMALLER
    if {"memory", "fault map"} & set(needs):
        return MEMORY
    if "training" in needs:
        return TRAINING
    if {"statistics", "activations", "weights"} & set(needs):
        return AS_IT_IS
    return INPUTS if needs else None


def best(record: Mapping[str, Any], faults: str, ber: float) -> Iterator[Best]:
    """Yield the most accurate measured method of each level of access at a rate.

    The method is chosen and judged on the same chips. If several methods are close, the gain of the best is therefore
    slightly too optimistic.
    """
    rows = [row for row in record["rows"] if (row["faults"], row["ber"]) == (faults, ber) and row["measured"]]
    plain = next((row for row in rows if level(row) is None), None)
    if plain is None:
        return
    top = plain
    for name in LEVELS:
        own = [row for row in rows if level(row) == name]
        if own:
            row = max(own, key=_accuracy)
            yield Best(name, row, Difference.of(row, plain), top, Difference.of(row, top))
            top = max((top, row), key=_accuracy)


@dataclass(frozen=True)
class Combination:
    """A combination of methods, compared with the same combination without one of them.

    Attributes:
        row: The combination's row in the comparison.
        over: The row without the last method, and the row without the first method, each with the gain over it. None
            for a row that was not measured. For two methods, these are each of them alone.
    """

    row: Mapping[str, Any]
    over: tuple[tuple[Mapping[str, Any], Difference] | None, tuple[Mapping[str, Any], Difference] | None]


def combinations(record: Mapping[str, Any], faults: str, ber: float) -> Iterator[Combination]:
    """Yield the measured combinations of methods at a rate."""
    rows = [row for row in record["rows"] if (row["faults"], row["ber"]) == (faults, ber) and row["measured"]]

    def compared(row: Mapping[str, Any], stages: list[Any]) -> tuple[Mapping[str, Any], Difference] | None:
        other = next((one for one in rows if one["stages"] == stages), None)
        return None if other is None else (other, Difference.of(row, other))

    for row in rows:
        stages = row["stages"]
        if len(stages) > 1:
            yield Combination(row, (compared(row, stages[:-1]), compared(row, stages[1:])))


def _accuracy(row: Mapping[str, Any]) -> float:
    return float(row["measured"]["pa"])
