"""Randomness: every draw has a seed derived from a path of names. No global generator is touched.

Two kinds of draws exist. Training (batch order, augmentation, initial weights) uses a `torch.Generator` from
`generator`. Chips use `hash64`, a counter-based integer generator whose output is the same on every device.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def derive(*path: str | int) -> int:
    """Return the 64-bit seed of a path of names, e.g. ``derive(0, "chip", 7, "conv1.weight")``.

    Numbers and names differ (``7`` and ``"7"``), and so do ``("a", "b")`` and ``("ab",)``.
    """
    text = json.dumps(path, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator seeded by a path of names."""
    return torch.Generator(device=device).manual_seed(derive(*path) >> 1)


def signed64(value: int) -> int:
    """Return the signed 64-bit integer with the same bits, for torch's int64."""
    value &= _MASK
    return value - (1 << 64) if value >= 1 << 63 else value


def _xor_shift(z: Tensor, shift: int) -> Tensor:
    """Return ``z ^ (z >>> shift)``, in place. torch's ``>>`` keeps the sign, so the high bits are masked."""
    return z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def hash64(key: int | Tensor, counter: Tensor) -> Tensor:
    """Return 64 random bits per counter, the same on CPU and CUDA.

    Args:
        key: A 64-bit integer, or int64 in the shape of ``counter`` with one key per counter.
        counter: int64, any shape; not modified.
    Returns:
        int64 of the same shape. All 64 bits are uniform.
    Source:
        SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), started at state ``key``.
    """
    return _mixed(counter + 1, key)


def _mixed(steps: Tensor, key: int | Tensor) -> Tensor:
    """Return SplitMix64's outputs this many steps from its start. ``steps`` is overwritten."""
    z = steps.mul_(signed64(_GOLDEN)).add_(signed64(key) if isinstance(key, int) else key)
    z = _xor_shift(z, 30).mul_(signed64(_MIX_1))
    z = _xor_shift(z, 27).mul_(signed64(_MIX_2))
    return _xor_shift(z, 31)


def _fraction(bits: Tensor) -> Tensor:
    """Return the upper 52 bits, in place: the numerator of a fraction in [0, 1) with denominator 2^52."""
    return bits.bitwise_right_shift_(12).bitwise_and_((1 << 52) - 1)


def uniform_integers(key: int, count: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the first ``count`` numbers of a key's endless stream of uniform integers in [0, size): (count,).

    The numbers are int32 if ``size`` allows it, which halves the time to sort them. Otherwise they are int64.
    """
    narrow = size <= 2**31
    if torch.device(device).type != "cpu":
        integers = scaled_integers(hash64(key, torch.arange(count, device=device)), size)
        return integers.to(torch.int32 if narrow else torch.int64)
    out = np.empty(count, np.int32 if narrow else np.int64)
    for first, last in _chunks(count):
        z = _STEPS[: last - first] + np.uint64((key + first * _GOLDEN) & _MASK)
        out[first:last] = (_scrambled(z) >> np.uint64(12)).view(np.int64) * (size * 2.0**-52)
    return torch.from_numpy(out)


def scaled_integers(bits: Tensor, size: int | Tensor) -> Tensor:
    """Return one uniform integer in [0, size) per element of random bits, as int64.

    Args:
        bits: int64, random bits; overwritten.
        size: One size, or float64 with one size per element.
    """
    return _fraction(bits).double().mul_(size * 2.0**-52).long()


def bernoulli(key: int, counter: Tensor, probability: float) -> Tensor:
    """Return one random bool per counter, True with this probability.

    A counter that is True at one probability is True at every higher one, for the same key.

    Args:
        key: A 64-bit integer.
        counter: Integers, 1-d; not modified.
        probability: In [0, 1].
    """
    threshold = math.ceil(probability * 2**52) << 12
    if counter.device.type != "cpu" or threshold > _MASK:
        return bernoulli_of(hash64(key, counter.long()), probability)
    out = np.empty(len(counter), bool)
    steps = counter.numpy()
    for first, last in _chunks(len(out)):
        z = steps[first:last].astype(np.uint64)
        z *= np.uint64(_GOLDEN)
        z += np.uint64((key + _GOLDEN) & _MASK)
        np.less(_scrambled(z), np.uint64(threshold), out=out[first:last])
    return torch.from_numpy(out)


_CHUNK = 1 << 15  # so many numbers stay in a core's cache from one operation to the next
_STEPS = np.arange(1, _CHUNK + 1, dtype=np.uint64) * np.uint64(_GOLDEN)


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


def _scrambled(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's outputs from its states, in place. torch takes twice as long, as it has no logical shift."""
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= np.uint64(_MIX_1)
    np.right_shift(z, np.uint64(27), out=shifted)
    z ^= shifted
    z *= np.uint64(_MIX_2)
    np.right_shift(z, np.uint64(31), out=shifted)
    z ^= shifted
    return z


def bernoulli_of(bits: Tensor, probability: float | Tensor) -> Tensor:
    """Return one bool per element of random bits, True with this probability. ``bits`` (int64) is overwritten."""
    if isinstance(probability, Tensor):
        return _fraction(bits).double().mul_(2.0**-52) < probability
    return _fraction(bits) < math.ceil(probability * 2**52)


_OCTAVES_FROM = -40  # all arrivals before time 2^-40 share one interval
_LEAF = 4096  # in intervals with at most this many arrivals, each arrival's time is drawn


def poisson_count(n: int, time: float, key: int) -> int:
    """Return the number of arrivals of a Poisson process of rate ``n`` up to ``time``.

    The key fixes the whole sample path. For one key, the count never falls as time grows, increments over disjoint
    intervals are independent, and each count is exactly Poisson(n * time).

    The count is found by halving. An octave [2^k, 2^(k+1)) has a Poisson number of arrivals, and its halves share them
    binomially, down to intervals with few arrivals. There, each arrival's time is drawn. This takes tens of draws,
    not n.

    Args:
        n: Arrivals per unit of time.
        time: A finite time >= 0.
        key: Seed of the path.
    Source:
        Poisson process restricted to an interval given its count: Kingman, Poisson Processes, section 2.4.
        NumPy's `RandomState` on Philox: a stream that NumPy promises never to change.
    """
    octave = max(0, math.frexp(time)[1] - _OCTAVES_FROM) if time else 0
    edges = [0.0, *(2.0 ** (_OCTAVES_FROM + k) for k in range(octave + 1))]
    stream = np.random.Philox(key=key)
    start = stream.state
    draw = np.random.RandomState(stream)
    arrivals = draw.poisson([n * (high - low) for low, high in pairwise(edges)])
    low, high = edges[octave], edges[octave + 1]
    count, inside = int(arrivals[:octave].sum()), int(arrivals[octave])
    if time == low or inside == 0:
        return count

    def at(node: int) -> np.random.RandomState:  # each node of the halving tree has its own draws, 2^64 apart
        start["state"]["counter"][2:] = node, octave + 1
        stream.state = start
        return draw

    node, part = 1, (time - low) / (high - low)
    while inside > _LEAF:
        left = int(at(node).binomial(inside, 0.5))
        if part < 0.5:
            inside, part, node = left, 2 * part, 2 * node
        else:
            count, inside, part, node = count + left, inside - left, 2 * part - 1, 2 * node + 1
    return count + int(np.count_nonzero(at(node).random_sample(inside) < part))


def poisson_time(probability: float) -> float:
    """Return the time up to which a unit-rate Poisson process has an arrival with this probability (< 1)."""
    return -math.log1p(-probability)
