"""Randomness: every draw has a seed derived from a path of names, and nothing touches a global generator.

Two kinds of draws exist. Training (batch order, augmentation, initial weights) uses `torch.Generator`s, made by
`generator`. Chips use `hash64`, a counter-based integer generator whose output is the same on every device.
"""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def derive(*path: str | int) -> int:
    """Return the 64-bit seed of a path of names, e.g. ``derive(0, "chip", 7, "conv1.weight")``.

    Names and numbers are kept apart (``7`` and ``"7"`` differ), and so are ``("a", "b")`` and ``("ab",)``.
    """
    text = json.dumps(path, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator seeded by a path of names."""
    return torch.Generator(device=device).manual_seed(derive(*path) >> 1)


def signed64(value: int) -> int:
    """Return the signed 64-bit integer with the same bits, as torch's int64 wants it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _xor_shift(z: Tensor, shift: int) -> Tensor:
    """Return ``z ^ (z >>> shift)``, in place; torch's ``>>`` keeps the sign, so the high bits are masked."""
    return z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def hash64(key: int | Tensor, counter: Tensor) -> Tensor:
    """Return 64 random bits for each counter under a key, the same on CPU and CUDA.

    Args:
        key: A 64-bit integer, or one int64 for each counter (shape of ``counter``).
        counter: int64, any shape; not modified.
    Returns:
        int64 of the same shape; all 64 bits are uniform.
    Source:
        SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), started at state ``key``.
    """
    start = signed64(key) if isinstance(key, int) else key
    z = (counter + 1).mul_(signed64(_GOLDEN)).add_(start)
    z = _xor_shift(z, 30).mul_(signed64(_MIX_1))
    z = _xor_shift(z, 27).mul_(signed64(_MIX_2))
    return _xor_shift(z, 31)


def unit_interval(bits: Tensor) -> Tensor:
    """Return random bits (int64) as float64 in [0, 1), multiples of 2^-52; products with any n stay below n."""
    return (bits >> 12).bitwise_and_((1 << 52) - 1).double().mul_(2.0**-52)


_OCTAVES_FROM = -40  # arrivals below 2^-40 share one interval
_LEAF = 4096  # intervals with at most this many arrivals are resolved by an explicit time for each


def poisson_count(n: int, time: float, key: int) -> int:
    """Return how many arrivals a Poisson process of rate ``n`` has had at ``time``.

    The whole sample path belongs to the key: for one key the count never falls as time grows, increments over
    disjoint intervals are independent, and each count is exactly Poisson(n * time), whatever was asked before.
    Found by halving: the octave [2^k, 2^(k+1)) has Poisson many arrivals, its halves share them binomially, and so on
    down to the few arrivals whose times are drawn one by one. Costs tens of draws, not n.

    Args:
        n: Arrivals per unit of time.
        time: A finite time >= 0.
        key: Seed of the path.
    Source:
        Poisson process restricted to an interval given its count: Kingman, Poisson Processes, section 2.4.
        NumPy's `RandomState` on Philox: a stream that NumPy promises never to change.
    """
    low, high, count, octave = 0.0, 2.0**_OCTAVES_FROM, 0, 0
    draw = np.random.RandomState(np.random.Philox(key=key))
    inside = int(draw.poisson(n * high))
    while time >= high:
        count += inside
        low, high, octave = high, 2 * high, octave + 1
        inside = int(draw.poisson(n * (high - low)))
    if time == low:
        return count
    node = 1
    part = (time - low) / (high - low)
    while inside > _LEAF:
        left = int(_node_draw(key, octave, node).binomial(inside, 0.5))
        if part < 0.5:
            inside, part, node = left, 2 * part, 2 * node
        else:
            count, inside, part, node = count + left, inside - left, 2 * part - 1, 2 * node + 1
    if inside == 0:
        return count
    return count + int(np.count_nonzero(_node_draw(key, octave, node).random_sample(inside) < part))


def _node_draw(key: int, octave: int, node: int) -> np.random.RandomState:
    """Return the generator of one node of the halving tree; ``counter`` sets it 2^64 draws apart from all others."""
    return np.random.RandomState(np.random.Philox(key=key, counter=[0, 0, node, octave + 1]))


def poisson_time(probability: float) -> float:
    """Return the time at which a unit-rate Poisson process has had an arrival with this probability (< 1)."""
    return -math.log1p(-probability)
