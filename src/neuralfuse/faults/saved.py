"""Chips on disk: the faulty cells of one layout, so that another machine can use the same chip."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from neuralfuse.errors import ConfigError, FileFormatError, ShapeError
from neuralfuse.faults.base import FAULT_MODELS, Chip, FaultModel
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.layout import Layout
from neuralfuse.files import read_arrays, write_arrays

SCHEMA = "neuralfuse/chip/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Saved(FaultModel):
    """A chip that `save_chip` wrote: its faulty cells, tensor by tensor. Every seed is this one chip.

    Args:
        file: The NPZ file.
    """

    kind: ClassVar[str] = "saved"
    ber: float = field(init=False)
    file: Path

    def __post_init__(self) -> None:
        header, arrays = read_arrays(Path(self.file), SCHEMA, ["cell", "keeps", "flips"])
        try:
            layout = Layout.of([(str(name), int(words)) for name, words in header["regions"]], int(header["bits"]))
            object.__setattr__(self, "ber", float(header["faults"]["ber"]))
            object.__setattr__(self, "seed", int(header["seed"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{self.file} must hold a chip: {error!r}.") from error
        cell, kinds = arrays["cell"], (arrays["keeps"], arrays["flips"])
        sane = cell.dtype == np.int64 and cell.shape == (header.get("count"),) and bool((np.diff(cell) > 0).all())
        sane &= all(one.dtype == bool and one.shape == cell.shape for one in kinds) and 0 <= self.ber <= 1
        if not sane or (len(cell) and not 0 <= cell[0] <= cell[-1] < layout.cells):
            raise FileFormatError(f"{self.file} must hold the sorted cells of one chip: the file is damaged.")
        for name, value in (("header", header), ("layout", layout), ("_arrays", arrays)):
            object.__setattr__(self, name, value)

    header: dict[str, Any] = field(init=False, repr=False)
    layout: Layout = field(init=False, repr=False)
    _arrays: dict[str, NDArray[Any]] = field(init=False, repr=False)
    seed: int = field(init=False)

    def cells(self, layout: Layout, seed: int, device: torch.device, *, read: int = 0) -> FaultyCells:
        """Return the saved cells of the tensors in a layout.

        Raises:
            ShapeError: a tensor is not in the file, or has another size or word width there.
        """
        if layout.bits != self.layout.bits:
            raise ShapeError(f"{self.file} must have {layout.bits}-bit words: it has {self.layout.bits}-bit words.")
        known = {region.name: region for region in self.layout.regions}
        found = []
        for region in layout.regions:
            own = known.get(region.name)
            if own is None or own.words != region.words:
                got = "has none" if own is None else f"has {own.words}"
                raise ShapeError(f"{self.file} must hold {region.words} words of {region.name!r}: it {got}.")
            low, high = np.searchsorted(
                self._arrays["cell"], [own.start * layout.bits, (own.start + own.words) * layout.bits]
            )
            cell, keeps, flips = (
                torch.from_numpy(self._arrays[name][low:high]).to(device) for name in ("cell", "keeps", "flips")
            )
            found.append((cell + (region.start - own.start) * layout.bits, keeps, flips))
        return FaultyCells(*(torch.cat(column) for column in zip(*found, strict=True)))

    @property
    def one_chip(self) -> bool:
        """Whether every seed is the same chip: always True."""
        return True

    def at(self, ber: float) -> Self:
        """Raise `ConfigError`: a saved chip is a fixed list of cells."""
        raise ConfigError(f"a saved chip has a fixed rate, {self.ber:g}: got ber={ber:g}. Save a chip of that rate.")

    def to_config(self) -> dict[str, Any]:
        """Return the fault model and the seed that made the chip, as JSON."""
        return {"kind": self.kind, "ber": self.ber, "faults": self.header["faults"], "seed": self.seed}


def save_chip(path: Path | str, chip: Chip, layout: Layout) -> None:
    """Write the faulty cells of a chip on a layout as NPZ. Transient faults are those of the first read."""
    cells = chip.faults.cells(layout, chip.seed, torch.device("cpu"))
    header = {
        "schema": SCHEMA,
        "faults": chip.faults.to_config() | {"ber": chip.faults.ber},
        "seed": chip.seed,
        "count": len(cells.cell),
        "bits": layout.bits,
        "regions": [[region.name, region.words] for region in layout.regions],
    }
    arrays = {"cell": cells.cell.numpy(), "keeps": cells.keeps.numpy(), "flips": cells.flips.numpy()}
    write_arrays(Path(path), header, arrays)


def load_chip(path: Path | str) -> Chip:
    """Read a chip that `save_chip` wrote.

    Raises:
        FileFormatError: the file is not a chip, or is damaged.
    """
    saved = Saved(file=Path(path))
    return Chip(saved, saved.seed)


FAULT_MODELS[Saved.kind] = Saved
