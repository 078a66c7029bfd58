"""A chip's effect on a model: every changed bit, a summary per layer and per bit position, the faulty array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralfuse.faults import Array, ArrayFaults, BitRates, Chip, Measured, Transient, WordLayout
from neuralfuse.faults.maps import GOOD, INVERTS, STUCK_AT_0, STUCK_AT_1, FaultMap
from neuralfuse.memory.weights import Reading, WeightMemory


def changes(memory: WeightMemory, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yield one entry per changed bit, in the order of the image.

    Keys: layer, index (in the tensor), bit (0 is the least significant), direction ("0->1" or "1->0"), code_before,
    code_after, value_before, value_after.
    """
    shapes = {name: view.shape for name, view in memory.split(memory.codes).items()}
    stored, before = reading.stored, memory.values[reading.index]
    difference = stored ^ reading.codes
    regions = iter(memory.layout.regions)
    region = next(regions)
    rows = zip(*(one.tolist() for one in (reading.index, stored, reading.codes, difference, before, reading.values)),
               strict=True)  # fmt: skip
    for word, code, read, changed, value, faulty in rows:
        while word >= region.start + region.words:
            region = next(regions)
        for bit in range(memory.layout.bits):
            if changed >> bit & 1:
                yield {
                    "layer": region.name,
                    "index": [int(one) for one in np.unravel_index(word - region.start, shapes[region.name])],
                    "bit": bit,
                    "direction": "1->0" if code >> bit & 1 else "0->1",
                    "code_before": code,
                    "code_after": read,
                    "value_before": value,
                    "value_after": faulty,
                }


def summarize(memory: WeightMemory, chip: Chip) -> dict[str, Any]:
    """Summarize a chip's effect on a model's weights, as JSON: in total, per layer, and per bit position.

    ``faulty_cells`` counts the faulty cells of the data, whether or not they change a bit. ``largest_change`` and
    ``rms_change`` are changes of weight values.
    """
    reading = memory.read(chip)
    layout, bits = memory.layout, memory.layout.bits
    whole = memory.readout.stored(layout)
    cells = chip.faults.cells(whole, chip.seed, memory.device).cell
    cells = cells[cells < layout.cells]
    stored, difference = reading.stored.long(), (reading.stored ^ reading.codes).long()
    change = (reading.values - memory.values[reading.index]).double()
    by_bit = []
    for bit in range(bits):
        hit = difference >> bit & 1 == 1
        one = stored >> bit & 1 == 1
        by_bit.append(
            {
                "bit": bit,
                "faulty_cells": int((cells % bits == bit).sum()),
                "zero_to_one": int((hit & ~one).sum()),
                "one_to_zero": int((hit & one).sum()),
            }
        )
    layers = []
    for region in layout.regions:
        own = slice(*_between(reading.index, region.start, region.start + region.words))
        first, last = _between(cells, region.start * bits, (region.start + region.words) * bits)
        sizes = change[own][torch.isfinite(change[own])].abs()
        layers.append(
            {
                "layer": region.name,
                "words": region.words,
                "faulty_cells": last - first,
                "changed_words": own.stop - own.start,
                "changed_bits": sum(int((difference[own] >> bit & 1).sum()) for bit in range(bits)),
                "largest_change": float(sizes.max()) if len(sizes) else 0.0,
                "rms_change": float((sizes.square().sum() / region.words).sqrt()) if len(sizes) else 0.0,
            }
        )
    return {
        "chip": title(chip),
        "faults": chip.faults.to_config() | {"ber": chip.faults.ber},
        "seed": chip.seed,
        "words": layout.words,
        "cells": layout.cells,
        "faulty_cells": len(cells),
        "changed_words": len(reading.index),
        "changed_bits": reading.changed_bits,
        "not_finite": reading.not_finite,
        "readout": {**memory.readout.to_config(), "overhead": memory.readout.overhead(layout)},
        "layers": layers,
        "bits": by_bit,
    }


def title(chip: Chip) -> str:
    """Return a chip's title: the kind of its faults, and its seed."""
    config = chip.faults.to_config()
    kind = config["faults"]["kind"] if config["kind"] == "saved" else config["kind"]
    return f"{kind}, seed {chip.seed}"


def on_array(memory: WeightMemory, chip: Chip, banks: int) -> FaultMap:
    """Return a fault map of the first banks of the array that holds the weights.

    Faults without an array are shown in banks of the default shape, with the words laid row by row.
    """
    faults = inner = chip.faults
    while isinstance(inner, BitRates | Transient):
        inner = inner.faults
    if isinstance(inner, Measured):
        array, mapping = inner.map.array, inner.placement(memory.layout.bits, chip.seed)
    elif isinstance(inner, ArrayFaults):
        array, mapping = inner.array, inner.mapping
    else:
        array, mapping = Array(), WordLayout()
    own = faults.cells(memory.layout, chip.seed, memory.device)
    bank, row, column = (one.cpu().numpy() for one in mapping.locate(memory.layout, array, own.cell))
    count = max(1, min(banks, int(bank.max()) + 1 if len(bank) else 1))
    cells = np.full((1, count, array.rows, array.columns), GOOD, np.uint8)
    behaviour = np.where(own.keeps.cpu(), INVERTS, np.where(own.flips.cpu(), STUCK_AT_1, STUCK_AT_0)).astype(np.uint8)
    shown = bank < count
    cells[0, bank[shown], row[shown], column[shown]] = behaviour[shown]
    synthetic = not isinstance(inner, Measured) or inner.map.synthetic
    return FaultMap(cells=cells, source=title(chip), synthetic=synthetic)


def _between(ordered: Tensor, low: int, high: int) -> tuple[int, int]:
    """Return the first and the end index of the values in [low, high) of a sorted tensor."""
    first, last = torch.searchsorted(ordered, torch.tensor([low, high], device=ordered.device)).tolist()
    return first, last
