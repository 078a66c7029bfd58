"""The interface of fault models, and chips. A fault model gives a memory's faulty cells; with a seed, it is a chip.

The seeds of the chips for training, validation, planning and results are fixed here and never overlap.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from neuralfuse.errors import ConfigError, check_ber, require, unknown_name
from neuralfuse.faults.arrays import Array, WordLayout
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.layout import Layout
from neuralfuse.faults.voltage import VoltageCurve, default_curve
from neuralfuse.seeds import bernoulli_of, derive, hash64, signed64

_TRAINING = 30_001  # seeds 0..30000; source: NeuralFuse's public code
_VALIDATION_FROM = 40_000
_PLANNING_FROM = 45_000
_PUBLISHED_FROM = 50_000  # seeds 50000..50009; source: NeuralFuse's public code
_EVALUATION_FROM = 50_010


@dataclass(frozen=True, kw_only=True)
class FaultModel(abc.ABC):
    """A model of which cells fail. A fault model and a seed make a `Chip`, which always has the same faulty cells.

    Attributes:
        ber: The bit-error rate, a fraction in [0, 1]. It counts faulty cells, unless the subclass's docstring says
            otherwise. A faulty cell does not always change its bit. Records hold the share of changed bits, too.
    """

    kind: ClassVar[str]
    ber: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "ber", check_ber(self.ber))

    @abc.abstractmethod
    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the faulty cells of this layout on the chip with this seed.

        Args:
            layout: The address space.
            seed: Seed of the chip.
            device: Where the result lies. Its values do not depend on the device.
            read: Number of earlier reads of the memory. Only transient errors depend on it.
        """

    def at(self, ber: float) -> Self:
        """Return this model at another rate. Cells of a chip that are faulty at one rate are faulty at higher rates."""
        return replace(self, ber=ber)

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> FaultModel:
        """Return this model at the curve's rate for a supply voltage."""
        return self.at(curve.ber(voltage))

    def chips(self, count: int) -> list[Chip]:
        """Return the chips on which results are measured: seeds 50010, 50012, ..., the same for every method.

        Every second seed is used, because neighbouring `Reference` chips are dependent. If all seeds give the same
        chip, the list holds only that one.

        Raises:
            ConfigError: ``count`` is not positive, or larger than the number of seeds.
        """
        chips = _every_second(self, count, _EVALUATION_FROM, 2**31)
        return chips[:1] if self.one_chip else chips

    @property
    def cell_rate(self) -> float:
        """Probability that a cell is faulty. It is proportional to ``ber``, and in most models equal to it."""
        return self.ber

    @property
    def has_map(self) -> bool:
        """Whether a fault map, not a curve of rates, says which cells fail at a voltage."""
        return False

    @property
    def one_chip(self) -> bool:
        """Whether all seeds give the same chip, for instance a measured one."""
        return False

    def on_array(self, array: Array, mapping: WordLayout) -> FaultModel:
        """Return this model on another array. Only faults with a place in an array depend on it."""
        return self

    @property
    def permanent(self) -> FaultModel | None:
        """The part of the faults that is the same at every read, so that a memory test can find it; None for none."""
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the model as JSON, for records and files. `from_config` reads it."""
        own = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}
        return {"kind": self.kind, **own}

    def short_config(self) -> dict[str, Any]:
        """Return the model's rate and name, as in the training options of a record."""
        return {"ber": self.ber, "faults": self.kind}


@dataclass(frozen=True)
class Chip:
    """One piece of hardware: the faulty cells of a fault model for one seed. They never change."""

    faults: FaultModel
    seed: int

    def at(self, voltage: float, curve: VoltageCurve | None = None) -> Chip:
        """Return this chip at another supply voltage. Cells that fail at one voltage fail at all lower ones.

        Args:
            voltage: Supply voltage, in the curve's unit.
            curve: The rate at each voltage. By default `default_curve`, a model, in units of Vmin.
        """
        return Chip(self.faults.at_voltage(voltage, curve or default_curve()), self.seed)


def training_chip(faults: FaultModel, *path: str | int) -> Chip:
    """Return the training chip for a path of names, e.g. (seed, step, k). Training seeds are 0..30000."""
    return Chip(faults, derive(*path, "training chip") % _TRAINING)


def validation_chips(faults: FaultModel, count: int) -> list[Chip]:
    """Return chips for early stopping, unseen in training and never used for results; one if all seeds are one chip."""
    if faults.one_chip:
        return [Chip(faults, _VALIDATION_FROM)]
    return _every_second(faults, count, _VALIDATION_FROM, _PLANNING_FROM)


def planning_chips(faults: FaultModel, count: int) -> list[Chip]:
    """Return chips for the choice of a voltage, unseen in training and never used for results."""
    chips = _every_second(faults, count, _PLANNING_FROM, _PUBLISHED_FROM)
    return chips[:1] if faults.one_chip else chips


def published_chips(faults: FaultModel) -> list[Chip]:
    """Return the ten chips of the paper's tables, seeds 50000..50009. Use them only to compare with the paper.

    Raises:
        ConfigError: all seeds give the same chip.
    """
    require(not faults.one_chip, f"the published chips must have faults drawn by seed: {faults.kind!r} is one chip.")
    return [Chip(faults, seed) for seed in range(_PUBLISHED_FROM, _PUBLISHED_FROM + 10)]


def _every_second(faults: FaultModel, count: int, start: int, end: int) -> list[Chip]:
    most = (end - start) // 2
    require(1 <= count <= most, f"chips must be in 1..{most}: got {count}.")
    return [Chip(faults, start + 2 * k) for k in range(count)]


FAULT_MODELS: dict[str, type[FaultModel]] = {}


def fault_model(kind: str, **options: Any) -> FaultModel:
    """Return a fault model by name.

    Args:
        kind: A key of `FAULT_MODELS`.
        options: Fields of the model: ``ber``, a fraction in [0, 1], and for instance ``stuck_at_1``.
    Raises:
        UnknownNameError: there is no fault model ``kind``.
        ConfigError: the model has no such option, or a required one is missing.
        RateError: ``ber`` is not in [0, 1].
    """
    if kind not in FAULT_MODELS:
        raise unknown_name("fault model", kind, FAULT_MODELS)
    model = FAULT_MODELS[kind]
    legal = [field.name for field in fields(model) if field.init]
    for option in options:
        if option not in legal:
            raise ConfigError(f"options of faults {kind!r} must be among {', '.join(legal)}: got {option!r}.")
    try:
        return model(**options)
    except TypeError as error:
        raise ConfigError(f"faults {kind!r} must have legal values of {', '.join(legal)}: {error}.") from error


def from_config(config: Mapping[str, Any]) -> FaultModel:
    """Return the fault model that `FaultModel.to_config` or a TOML file describes. A nested ``kind`` is a model, too.

    Raises:
        ConfigError: the description is incomplete. See `fault_model` for other errors.
    """
    options = {name: _built(value) for name, value in config.items()}
    kind = options.pop("kind", None)
    require(isinstance(kind, str), f"a fault model must have a kind, e.g. kind = 'stuck': got {dict(config)}.")
    return fault_model(str(kind), **options)


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_config(value) if "kind" in value else dict(value)
    return tuple(_built(one) for one in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "to_config"):
        return value.to_config()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def part_seed(seed: int, *path: str | int) -> int:
    """Return the seed of a part of a chip, in the range that every fault model accepts."""
    return derive(seed, *path) % (2**32 - 1)


def chance(layout: Layout, seed: int, purpose: str, cell: Tensor, probability: float | Tensor) -> Tensor:
    """Return for each cell whether it has a property that cells have with this probability: bool (k,).

    The result depends only on the chip's seed, the purpose, the tensor's name and the cell's place in the tensor.
    """
    starts = torch.tensor([region.start for region in layout.regions], device=cell.device) * layout.bits
    region = torch.bucketize(cell, starts, right=True) - 1
    keys = [signed64(derive(seed, "chip", purpose, region.name)) for region in layout.regions]
    return bernoulli_of(hash64(torch.tensor(keys, device=cell.device)[region], cell - starts[region]), probability)
