"""What is best by what may be changed, what methods add to each other, and by how much: paired by chip."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from neuralfuse.evaluation import mean, t_interval

INPUTS, AS_IT_IS = "only what enters the model", "the model, without training it"
TRAINING, MEMORY, SMALLER = "training the model anew", "the memory", "a smaller model at full voltage"
LEVELS = (INPUTS, AS_IT_IS, TRAINING, MEMORY, SMALLER)


@dataclass(frozen=True)
class Difference:
    """How much more accurate one method is than another: mean over the same chips, in points, and its 95% interval."""

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
    """The most accurate method that changes so much.

    Attributes:
        level: One of `LEVELS`.
        row: The comparison's.
        gain: Over no protection.
        above: The most accurate row of the levels before this one, and no protection.
        more: Over that one.
    """

    level: str
    row: Mapping[str, Any]
    gain: Difference
    above: Mapping[str, Any]
    more: Difference


def level(row: Mapping[str, Any]) -> str | None:
    """Return what a method changes, the last of `LEVELS` that it needs; None for no protection.

    What else it needs to be made, gradients for a NeuralFuse, is in the comparison's own tables.
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
    """Yield the most accurate method of each level of access at a rate, as far as measured.

    A choice among methods on the chips that it is then judged by: where several are close, the best is a little less
    good than it looks.
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
class Together:
    """Methods put together, beside the same without one of them.

    Attributes:
        row: The comparison's.
        over: The row without the last method, then that without the first one, each with the gain over it, where it was
            measured: for two methods, each of them alone.
    """

    row: Mapping[str, Any]
    over: tuple[tuple[Mapping[str, Any], Difference] | None, tuple[Mapping[str, Any], Difference] | None]


def together(record: Mapping[str, Any], faults: str, ber: float) -> Iterator[Together]:
    """Yield what was put together at a rate, as far as measured."""
    rows = [row for row in record["rows"] if (row["faults"], row["ber"]) == (faults, ber) and row["measured"]]

    def beside(row: Mapping[str, Any], stages: list[Any]) -> tuple[Mapping[str, Any], Difference] | None:
        other = next((one for one in rows if one["stages"] == stages), None)
        return None if other is None else (other, Difference.of(row, other))

    for row in rows:
        stages = row["stages"]
        if len(stages) > 1:
            yield Together(row, (beside(row, stages[:-1]), beside(row, stages[1:])))


def _accuracy(row: Mapping[str, Any]) -> float:
    return float(row["measured"]["pa"])
