"""What a fault model is: something that names the faulty cells of a memory, and what each does to its bit."""

from __future__ import annotations

import abc
from collections.abc import Mapping as Table
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from neuralfuse.errors import ConfigError, check_ber, require, unknown_name
from neuralfuse.faults.layout import Layout
from neuralfuse.faults.voltage import VoltageCurve
from neuralfuse.seeds import bernoulli_of, derive, hash64, signed64

if TYPE_CHECKING:
    from neuralfuse.faults.arrays import Array, Mapping


@dataclass(frozen=True)
class FaultyCells:
    """The faulty cells of one chip and what each reads: ``bit -> (bit AND keeps) XOR flips``.

    Stuck at 0 keeps nothing and flips nothing; stuck at 1 flips the 0 it has left; an inverted bit keeps and flips.

    Attributes:
        cell: int64 (k,), sorted, no cell twice; cells as `Layout` counts them.
        keeps: bool (k,).
        flips: bool (k,).
    """

    cell: Tensor
    keeps: Tensor
    flips: Tensor

    def __getitem__(self, which: Tensor | slice) -> FaultyCells:
        """Return some of them, by a mask or a slice."""
        return FaultyCells(self.cell[which], self.keeps[which], self.flips[which])

    @staticmethod
    def of(cell: Tensor, keeps: Tensor, flips: Tensor) -> FaultyCells:
        """Return cells (int64, any order, at most 2^61) in order; where one comes twice, its behaviours must agree."""
        packed = distinct(cell * 4 + keeps * 2 + flips)
        return FaultyCells(packed >> 2, (packed & 2).bool(), (packed & 1).bool())

    def then(self, later: FaultyCells) -> FaultyCells:
        """Return what two faults behind each other make of a bit: these first, ``later`` on what they read."""
        cell, order = torch.cat([self.cell, later.cell]).sort(stable=True)
        keeps = torch.cat([self.keeps, later.keeps])[order]
        flips = torch.cat([self.flips, later.flips])[order]
        twice = (cell[1:] == cell[:-1]).nonzero().squeeze(1)
        flips[twice] = (flips[twice] & keeps[twice + 1]) ^ flips[twice + 1]
        keeps[twice] &= keeps[twice + 1]
        alone = torch.ones_like(keeps)
        alone[twice + 1] = False
        return FaultyCells(cell, keeps, flips)[alone]


def distinct(values: Tensor) -> Tensor:
    """Return the distinct values of an integer tensor (n,), sorted; ``values`` is used up."""
    if values.device.type != "cpu":
        found: Tensor = torch.unique(values)
        return found
    ordered = values.numpy()
    ordered.sort()  # with vector instructions, unlike torch's
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return torch.from_numpy(ordered.compress(first))


def room(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialized tensor (count,); on a CPU from NumPy, which asks the system for large pages: the first
    write to megabytes of small ones takes longer than all else that is done with them."""
    if device.type != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(count, {torch.int64: np.int64, torch.bool: np.bool_}[dtype]))


def where(mask: Tensor) -> Tensor:
    """Return the places of True in a bool tensor (n,): int64. NumPy finds them ten times faster than torch on a CPU."""
    if mask.device.type != "cpu":
        return mask.nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


@dataclass(frozen=True, kw_only=True)
class FaultModel(abc.ABC):
    """What makes cells fail. Together with a seed it is a chip: the same faulty cells for ever.

    Attributes:
        ber: The rate by which the model is asked for, a fraction in [0, 1]: of faulty cells, where its own docstring
            says nothing else. Whether a faulty cell changes its bit is the model's matter; records report the realised
            share of changed bits beside it.
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
            device: Where the result lies; its values do not depend on it.
            read: How often the memory was read before; only transient errors ask.
        """

    def at(self, ber: float) -> Self:
        """Return the same model at another rate; on one chip, the cells faulty at a rate are so at any higher one."""
        return replace(self, ber=ber)

    def at_voltage(self, voltage: float, curve: VoltageCurve) -> FaultModel:
        """Return the same model at the rate that belongs to a supply voltage."""
        return self.at(curve.ber(voltage))

    @property
    def cell_rate(self) -> float:
        """Probability that a cell is faulty in whatever way: proportional to ``ber``, in most models equal to it."""
        return self.ber

    @property
    def has_map(self) -> bool:
        """Whether a fault map says which cells fail at a voltage, and no curve of rates."""
        return False

    @property
    def one_chip(self) -> bool:
        """Whether every seed is the same chip, as of a measured one."""
        return False

    def on_array(self, array: Array, mapping: Mapping) -> FaultModel:
        """Return the same model with its faults, where they have a place in an array, in this one."""
        return self

    @property
    def permanent(self) -> FaultModel | None:
        """The part that is the same at every read, which a test of the memory can find; None where there is none."""
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the model as JSON, for records and files; `from_config` reads it."""
        own = {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}
        return {"kind": self.kind, **own}


FAULT_MODELS: dict[str, type[FaultModel]] = {}


def fault_model(kind: str, **options: Any) -> FaultModel:
    """Return the fault model of this name.

    Args:
        kind: A key of `FAULT_MODELS`.
        options: The model's fields: ``ber``, a fraction in [0, 1], and for instance ``stuck_at_1``.
    Raises:
        UnknownNameError: no model is called ``kind``.
        ConfigError: the model has no such option, or lacks one.
        RateError: ``ber`` is not in [0, 1].
    """
    if kind not in FAULT_MODELS:
        raise unknown_name("fault model", kind, FAULT_MODELS)
    model = FAULT_MODELS[kind]
    legal = [field.name for field in fields(model) if field.init]
    for option in options:
        if option not in legal:
            raise ConfigError(f"faults {kind!r} must be given options out of {', '.join(legal)}: got {option!r}.")
    try:
        return model(**options)
    except TypeError as error:
        raise ConfigError(f"faults {kind!r} must be given {', '.join(legal)}: {error}.") from error


def from_config(config: Table[str, Any]) -> FaultModel:
    """Return the fault model that `FaultModel.to_config` or a TOML file describes; models nest by their ``kind``.

    Raises:
        ConfigError: the description is incomplete; UnknownNameError, RateError as `fault_model`.
    """
    options = {name: _built(value) for name, value in config.items()}
    kind = options.pop("kind", None)
    require(isinstance(kind, str), f"a fault model must have a kind, e.g. kind = 'stuck': got {dict(config)}.")
    return fault_model(str(kind), **options)


def _built(value: Any) -> Any:
    if isinstance(value, Table):
        return from_config(value) if "kind" in value else dict(value)
    return tuple(_built(one) for one in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "to_config"):
        return value.to_config()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def part_seed(seed: int, *path: str | int) -> int:
    """Return the seed of a part of a chip, one that every fault model takes."""
    return derive(seed, *path) % (2**32 - 1)


def chance(layout: Layout, seed: int, purpose: str, cell: Tensor, probability: float | Tensor) -> Tensor:
    """Say for each cell whether it has a property that cells have with this probability, the same for ever: bool (k,).

    Keyed by the chip's seed, the purpose, and the tensor's name and cell in it.
    """
    starts = torch.tensor([region.start for region in layout.regions], device=cell.device) * layout.bits
    region = torch.bucketize(cell, starts, right=True) - 1
    keys = [signed64(derive(seed, "chip", purpose, region.name)) for region in layout.regions]
    return bernoulli_of(hash64(torch.tensor(keys, device=cell.device)[region], cell - starts[region]), probability)
