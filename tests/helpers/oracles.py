"""Slow and obvious second implementations that several test modules compare with, and exact statistical bounds."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from neuralfuse.faults import Chip, FaultyCells, Layout
from neuralfuse.memory import Deployed

MASK = (1 << 64) - 1


def splitmix64(key: int, counter: int) -> int:
    """The published algorithm, one number at a time."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def within_bounds(counts: Any, trials: Any, rates: Any) -> bool:
    """Whether every count lies within exact binomial bounds."""
    counts, trials, rates = np.broadcast_arrays(*map(np.atleast_1d, (counts, trials, rates)))
    cases, which = np.unique(np.stack([trials, rates]), axis=1, return_inverse=True)
    low, high = stats.binom.interval(1 - 1e-7, *cases)
    return bool(((low[which] <= counts) & (counts <= high[which])).all())


def packed(faults: FaultyCells) -> np.ndarray:
    """Cells and what each does, one number each."""
    return (faults.cell * 4 + faults.keeps * 2 + faults.flips).numpy()


def x_of(count: int = 3, seed: int = 2) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def faulty_words(words: list[int], name: str, bits: int, chip: Chip, read: int = 0) -> list[int]:
    """Words of one tensor, without sign, as the cells of a chip give them back, bit by bit."""
    found = chip.faults.cells(Layout.of([(name, len(words))], bits), chip.seed, torch.device("cpu"), read=read)
    out = [word & ((1 << bits) - 1) for word in words]
    for cell, keeps, flips in zip(found.cell.tolist(), found.keeps.tolist(), found.flips.tolist(), strict=True):
        word, mask = cell // bits, 1 << cell % bits
        out[word] = (out[word] if keeps else out[word] & ~mask) ^ (mask if flips else 0)
    return out


def faulty_tensor(codes: Tensor, name: str, bits: int, chip: Chip, read: int = 0) -> Tensor:
    """Codes (two's complement where their type has a sign) as the cells of a chip give them back."""
    words = faulty_words(codes.flatten().tolist(), name, bits, chip, read)
    if codes.dtype in (torch.int8, torch.int16):
        words = [word - (1 << bits) * (word >> bits - 1) for word in words]
    wide = torch.tensor(words).view(codes.shape)
    return wide.to(torch.uint32).view(torch.int32) if bits == 32 else wide.to(codes.dtype)


def set_by_hand(model: nn.Module, base: Deployed, chip: Chip, read: int = 0) -> nn.Module:
    """A copy of the model whose weights are those that a chip reads; weights with words of their own stay."""
    twin, scheme = copy.deepcopy(model), base.memory.scheme
    for one, own in zip(base.memory.stored, base.memory.layers.select(twin), strict=True):
        if type(one.tensor) is nn.Parameter and one.tensor.is_floating_point():
            coded = scheme.encode(one.tensor, one.channel_axis)
            codes = faulty_tensor(coded.codes, one.name, scheme.bits, chip, read)
            own.tensor.data = scheme.decode(codes, coded.scale, coded.center).to(own.tensor.dtype)
    return twin
