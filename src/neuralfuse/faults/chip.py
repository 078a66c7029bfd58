"""A chip: a fault model and a seed. Which chips train, validate and test is fixed here, and never overlaps."""

from __future__ import annotations

from dataclasses import dataclass

from neuralfuse.errors import require
from neuralfuse.faults.base import FaultModel
from neuralfuse.faults.voltage import VoltageCurve, default_curve
from neuralfuse.seeds import derive

_TRAINING = 30_001  # seeds 0..30000; source: NeuralFuse's public code
_VALIDATION_FROM = 40_000
_PLANNING_FROM = 45_000
_PUBLISHED_FROM = 50_000  # seeds 50000..50009; source: NeuralFuse's public code
_EVALUATION_FROM = 50_010


@dataclass(frozen=True)
class Chip:
    """One piece of hardware: the cells that a fault model makes faulty for a seed, the same for ever."""

    faults: FaultModel
    seed: int

    def at(self, voltage: float, curve: VoltageCurve | None = None) -> Chip:
        """Return this chip at another supply voltage: the cells that fail at one are among those at any lower one.

        Args:
            voltage: In the curve's unit.
            curve: What rate belongs to it; by default `default_curve`, a model, in units of Vmin.
        """
        return Chip(self.faults.at_voltage(voltage, curve or default_curve()), self.seed)


def training_chip(faults: FaultModel, *path: str | int) -> Chip:
    """Return the training chip of a path of names, e.g. (seed, step, k); training seeds are 0..30000."""
    return Chip(faults, derive(*path, "training chip") % _TRAINING)


def validation_chips(faults: FaultModel, count: int) -> list[Chip]:
    """Return chips for early stopping: unseen in training, never used for results; one where all seeds are one chip."""
    if faults.one_chip:
        return [Chip(faults, _VALIDATION_FROM)]
    return _every_second(faults, count, _VALIDATION_FROM, _PLANNING_FROM)


def planning_chips(faults: FaultModel, count: int) -> list[Chip]:
    """Return chips by which a voltage is chosen: unseen in training, never used for results."""
    chips = _every_second(faults, count, _PLANNING_FROM, _PUBLISHED_FROM)
    return chips[:1] if faults.one_chip else chips


def evaluation_chips(faults: FaultModel, count: int) -> list[Chip]:
    """Return the chips on which results are measured: seeds 50010, 50012, ..., the same for every method.

    Every second seed, because neighbouring `Reference` chips are dependent. Where all seeds are one chip, only it.
    """
    chips = _every_second(faults, count, _EVALUATION_FROM, 2**31)
    return chips[:1] if faults.one_chip else chips


def published_chips(faults: FaultModel) -> list[Chip]:
    """Return the ten chips of the paper's tables, seeds 50000..50009; use them only to compare with the paper.

    Raises:
        ConfigError: all seeds are one chip.
    """
    require(
        not faults.one_chip, f"the published chips must be of faults drawn from a seed: {faults.kind!r} is one chip."
    )
    return [Chip(faults, seed) for seed in range(_PUBLISHED_FROM, _PUBLISHED_FROM + 10)]


def _every_second(faults: FaultModel, count: int, start: int, end: int) -> list[Chip]:
    most = (end - start) // 2
    require(1 <= count <= most, f"chips must be in 1..{most}: got {count}.")
    return [Chip(faults, start + 2 * k) for k in range(count)]
