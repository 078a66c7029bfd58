"""What every fault model promises: its rates in each direction, faults that nest, and the same chip for ever.

"Bit-error rate" has two meanings. `flip`: each faulty cell inverts its bit, so the rate is that of changed bits.
`stuck`: each faulty cell reads 0 or 1 whatever was written, so that about half of them change a bit.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.oracles import packed, within_bounds
from neuralfuse.errors import ConfigError
from neuralfuse.faults import (
    FAULT_MODELS,
    Array,
    Asymmetric,
    BitRates,
    Chip,
    Clusters,
    Combined,
    FaultModel,
    FaultyCells,
    Flip,
    Layout,
    Lines,
    OneChip,
    Reference,
    Stuck,
    Synthetic,
    Transient,
    from_config,
)

CPU = torch.device("cpu")
ROWS, COLUMNS, BANKS, BITS = 32, 16, 2048, 8
ARRAY = Array(rows=ROWS, columns=COLUMNS)
HALF = ROWS * COLUMNS * BANKS // BITS // 2
LAYOUT = Layout.of([("a", HALF), ("b", HALF)], BITS)  # whole banks: cells of the image are those of the array
FEWER = Layout.of([("a", HALF // 4), ("b", HALF // 4)], BITS)  # enough where many cells are faulty
SMALL = Layout.of([("a", 6001), ("b", 5), ("c", 2930)], BITS)
CELLS = np.arange(LAYOUT.cells)
ROW, COLUMN = CELLS // COLUMNS % ROWS, CELLS % COLUMNS
SHARES = (1.0, 0.5, 0.25, 0.0, 0.0, 0.1, 1.0, 0.9)


class Promise(NamedTuple):
    """Probabilities that a cell is faulty, that a stored 0 reads 1, and a stored 1 reads 0; one number, or one a bit.

    ``together`` are the rows and columns over which cells may fail together: so far apart, or in another bank, they
    are independent.
    """

    model: FaultModel
    faulty: Any
    up: Any
    down: Any
    together: tuple[int, int] = (1, 1)


def stuck(model: FaultModel, faulty: Any, ones: float, together: tuple[int, int] = (1, 1)) -> Promise:
    return Promise(model, faulty, faulty * ones, faulty * (1 - ones), together)


def flip(model: FaultModel, faulty: Any) -> Promise:
    return Promise(model, faulty, faulty, faulty)


@functools.cache
def promises(p: float) -> dict[str, Promise]:
    """One of everything, its rate of faulty cells p or a known function of it."""
    a, b, shares = p / 2, p / 3, np.array(SHARES)
    made = functools.partial(Synthetic, ber=p, zero_to_one=0.7, array=ARRAY)
    mixture = Combined(parts=(Stuck(ber=a, stuck_at_1=0.2), Flip(ber=b)))
    up, down = (a * share * (1 - b) + (1 - a * share) * b for share in (0.2, 0.8))
    twice = Combined(parts=(Combined(parts=(Flip(ber=b), Flip(ber=b))), Flip(ber=b)))
    odd = (1 - (1 - 2 * b) ** 3) / 2
    rates = BitRates(faults=Flip(ber=p), shares=SHARES)
    found = {
        "flip": flip(Flip(ber=p), p),
        "transient": flip(Transient(faults=Flip(ber=p)), p),
        "bit-rates": flip(rates, p * shares),
        "bit-rates-twice": flip(BitRates(faults=rates, shares=SHARES), p * shares**2),
        "only": flip(BitRates.only(Flip(ber=p), bit=6), p * (np.arange(8) == 6)),
        "protecting": stuck(BitRates.protecting(Stuck(ber=p, stuck_at_1=0.2), msbs=3), p * (np.arange(8) < 5), 0.2),
        "combined": Promise(mixture, a + b - a * b, up, down),
        "combined-twice": Promise(twice, 1 - (1 - b) ** 3, odd, odd),
        "synthetic": stuck(made(), p, 0.7),
        "synthetic-columns": stuck(made(column_share=0.5), p, 0.7, (ROWS, 1)),
        "synthetic-fresh": stuck(made(persistent=0.7, column_share=0.6), p, 0.7, (ROWS, 1)),
        "reference": stuck(Reference(ber=p, mapping="linear"), p, 0.5),
    }
    for ones in (0.0, 0.1, 0.5, 1.0):
        found[f"stuck-{ones}"] = stuck(Stuck(ber=p, stuck_at_1=ones), p, ones)
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        more = max(share, 1 - share)
        model = Asymmetric(ber=p / 2 / more, zero_to_one=share)
        found[f"asymmetric-{share}"] = Promise(model, p, p * share / more, p * (1 - share) / more)
    for along, within in itertools.product(("row", "column", "bank"), (0.5, 1.0)):
        model = Lines(ber=p, along=along, within=within, array=ARRAY, stuck_at_1=0.3)
        together = {"row": (1, COLUMNS), "column": (ROWS, 1), "bank": (ROWS, COLUMNS)}[along]
        found[f"{along}s-{within}"] = stuck(model, p, 0.3, together)
    for height, width in ((1, 1), (2, 2), (4, 1), (1, 8), (ROWS, COLUMNS)):
        model = Clusters(ber=p, height=height, width=width, stuck_at_1=0.4, array=ARRAY)
        found[f"clusters-{height}x{width}"] = stuck(model, p, 0.4, (height, width))
    return found


NAMES = list(promises(0.1))
MIXTURES = {"combined", "combined-twice", "synthetic-fresh"}


@functools.cache
def groups(cells: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The group of every cell, by tensor and bit position, and how many are in each; in one they are independent."""
    apart = ROW[:cells] % height * width + COLUMN[:cells] % width
    group = (apart * 2 + (CELLS[:cells] >= cells // 2)) * BITS + CELLS[:cells] % BITS
    return group.astype(np.int32), np.bincount(group)


@pytest.mark.parametrize("ber", [1e-6, 1e-4, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_rates_are_as_promised(name, ber):
    """In each tensor, at each bit position, in each direction, for each kind of stored words; and over all of them."""
    model, faulty, up, down, (height, width) = promises(ber)[name]
    seeds = range(0, 30 if ber < 0.001 else 2, 2)  # every second: neighbouring reference chips are dependent
    layout = FEWER if ber > 0.05 else LAYOUT
    group, sizes = groups(layout.cells, height, width)
    trials = sizes * len(seeds)
    hits = {what: np.zeros(len(trials), np.int64) for what in ("faulty", "zeros", "ones", "random")}
    for seed in seeds:
        faults = model.cells(layout, seed, CPU)
        cell, keeps, flips = faults.cell.numpy(), faults.keeps.numpy(), faults.flips.numpy()
        assert (np.diff(cell) > 0).all() and (len(cell) == 0 or 0 <= cell[0] <= cell[-1] < layout.cells)
        hits["faulty"] += np.bincount(group[cell], minlength=len(trials))
        random = np.random.RandomState(1000 + seed).rand(len(cell)) < 0.5
        for words, stored in {"zeros": np.zeros_like(keeps), "ones": np.ones_like(keeps), "random": random}.items():
            wrong = ((stored & keeps) ^ flips) != stored
            hits[words] += np.bincount(group[cell[wrong]], minlength=len(trials))
    there = np.flatnonzero(trials)
    for what, rate in {"faulty": faulty, "zeros": up, "ones": down, "random": (up + down) / 2}.items():
        rates = np.broadcast_to(rate, BITS)[there % BITS]
        assert within_bounds(hits[what][there], trials[there], rates), what
        if height * width == 1:  # a sum of unequal binomials spreads less than one binomial (Hoeffding, 1956)
            assert within_bounds(hits[what].sum(), trials.sum(), np.mean(rate)), what


def test_flip_inverts_and_stuck_reads_the_same_whatever_was_written():
    for ber in (0.001, 0.1, 0.5):
        every, reads = (model(ber=ber).cells(LAYOUT, 1, CPU) for model in (Flip, Stuck))
        assert torch.equal(every.cell, reads.cell)
        assert every.keeps.all() and every.flips.all()
        assert not reads.keeps.any()
        for stored in (np.random.RandomState(1).rand(len(reads.cell)) < 0.5, False, True):
            assert within_bounds((reads.flips.numpy() != stored).sum(), len(reads.cell), 0.5)


def operations(call) -> tuple[Any, int]:
    """What a call returns, and how many tensor operations it took."""

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    with Counting() as counting:
        return call(), counting.count


@pytest.mark.parametrize("ber", [0.0, 0.02, 0.2, 1.0])
@pytest.mark.parametrize("kind", [Flip, Stuck, Asymmetric])
def test_what_an_accelerator_draws_at_once_is_what_a_cpu_draws_by_tensor(kind, ber):
    ber = min(ber, 0.5) if kind is Asymmetric else ber
    taken = []
    for tensors in (1, 40):
        layout = Layout.of([(f"layer{k}", 50 + 300 * (k % 3)) for k in range(tensors)], 8)
        model = kind(ber=ber)
        wanted = model.cells(layout, 7, CPU)
        got, count = operations(functools.partial(model.all_at_once, layout, 7, CPU))
        assert (ber == 0) == (len(got.cell) == 0)
        for name in ("cell", "keeps", "flips"):
            assert torch.equal(getattr(got, name), getattr(wanted, name)), name
        taken.append(count)
    assert model.cell_rate == 1 or max(taken) < 110  # however many tensors there are


@pytest.mark.parametrize(("along", "length"), [("row", (2,)), ("column", (1,)), ("bank", (1, 2))])
@pytest.mark.parametrize("ber", [0.001, 0.05, 0.4])
def test_weak_lines_fail_along_their_whole_length(along, length, ber):
    lines = functools.partial(Lines, along=along, stuck_at_1=0.3, array=ARRAY)
    faults = lines(ber=ber).cells(FEWER, 3, CPU)
    plane = np.zeros(FEWER.cells, int)
    plane[faults.cell] = np.where(faults.flips, 2, 1)
    plane = plane.reshape(-1, ROWS, COLUMNS)
    line = plane.max(length)
    assert (plane == np.expand_dims(line, length)).all(), "a line fails in part, or reads two values"
    assert within_bounds((line > 0).sum(), line.size, ber)
    assert within_bounds((line == 2).sum(), (line > 0).sum(), 0.3)
    part = lines(ber=ber / 2, within=0.5).cells(FEWER, 3, CPU)
    assert np.isin(packed(part), packed(faults)).all(), "the same lines are weak"
    assert within_bounds(len(part.cell), len(faults.cell), 0.5)


@pytest.mark.parametrize("size", [(2, 2), (3, 1), (1, 8), (5, 3)])
@pytest.mark.parametrize("ber", [0.001, 0.1, 0.5])
def test_clusters_are_whole_and_go_round_the_edges(size, ber):
    model = Clusters(ber=ber, height=size[0], width=size[1], array=ARRAY)
    layout = FEWER if ber > 0.05 else LAYOUT
    faulty = np.zeros(layout.cells, bool)
    faulty[model.cells(layout, 3, CPU).cell] = True
    faulty = faulty.reshape(-1, ROWS, COLUMNS)
    steps = list(itertools.product(range(size[0]), range(size[1])))
    corner = np.logical_and.reduce([np.roll(faulty, (-down, -right), (1, 2)) for down, right in steps])
    covered = np.logical_or.reduce([np.roll(corner, step, (1, 2)) for step in steps])
    assert np.array_equal(covered, faulty)
    assert corner[:, -1].any() or size[0] == 1
    assert faulty.any()


def test_reference_equals_the_plain_recipe_for_fifty_seeds():
    """Word i of a tensor uses slot i mod w of row (i div w^2) mod 8192, w = 128 // bits; every tensor from row 0."""
    drawn = functools.lru_cache(2)(lambda seed: np.random.RandomState(seed).rand(8192, 128))
    for seed in range(50_000, 50_050):
        bits, ber = (8, 4, 3, 2, 5, 7)[seed % 6], (0.3, 0.001, 0.01, 0.02, 0.05)[min(seed % 50, 4)]
        layout = Layout.of([("a", 900 + 131 * (seed % 10)), ("b", 517)], bits)
        faulty, ones = drawn(seed) < ber, drawn(seed + 1) < 0.5
        w = 128 // bits
        wanted = [
            ((region.start + i) * bits + bit, bool(ones[i // w**2 % 8192, i % w * bits + bit]))
            for region in layout.regions
            for i in range(region.words)
            for bit in np.flatnonzero(faulty[i // w**2 % 8192, i % w * bits : i % w * bits + bits])
        ]
        faults = Reference(ber=ber).cells(layout, seed, CPU)
        assert list(zip(faults.cell.tolist(), faults.flips.tolist(), strict=True)) == wanted
        assert not faults.keeps.any()


def test_a_reference_map_of_any_number_of_banks_is_faulty_all_along():
    """Or is refused; but never silently free of errors behind its first bank."""
    for banks in (None, 3):
        with contextlib.suppress(ConfigError):
            faults = Reference(ber=0.5, array=Array(rows=8, columns=128, banks=banks)).cells(LAYOUT, 1, CPU)
            assert (np.bincount(faults.cell.numpy() // (LAYOUT.cells // 16), minlength=16) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_faults_nest_over_fifty_voltages(name):
    """At a lower voltage no cell recovers and none reads anything else; of mixtures only the former holds."""
    chip = Chip(promises(0.01)[name].model, 12)
    before, most = np.array([], int), 0
    for voltage in np.linspace(1, 0.8, 50).tolist():
        faults = chip.at(voltage).faults.cells(SMALL, chip.seed, CPU)
        now = faults.cell.numpy() if name in MIXTURES else packed(faults)
        assert voltage < 1 or len(now) == 0
        assert np.isin(before, now).all()
        before, most = now, max(most, len(now))
    assert most == len(now) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_chip_is_the_same_whatever_was_asked_before(name):
    bers = [0.001, 0.05, 0.02, 0.05, 0.03]
    model = promises(0.1)[name].model
    first = [packed(model.at(ber).cells(SMALL, 5, CPU)) for ber in bers]
    model.cells(SMALL, 6, CPU)
    again = [packed(model.at(ber).cells(SMALL, 5, CPU)) for ber in reversed(bers)]
    for one, two in zip(first, reversed(again), strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(first[1], packed(model.at(0.05).cells(SMALL, 8, CPU)))


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(promises(0.1)[name].model, "array")])
def test_a_bank_does_not_depend_on_how_many_follow(name):
    model = promises(0.1)[name].model
    wanted = packed(model.cells(SMALL, 5, CPU))
    longer = packed(model.cells(Layout.of([("a", 6001), ("b", 5), ("c", 6000)], BITS), 5, CPU))
    assert np.array_equal(longer[longer < SMALL.cells * 4], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_models_survive_json(name):
    model = promises(0.1)[name].model
    again = from_config(json.loads(json.dumps(model.to_config())))
    assert again == model
    assert again.ber == model.ber
    assert np.array_equal(packed(again.cells(SMALL, 5, CPU)), packed(model.cells(SMALL, 5, CPU)))


def test_every_model_is_tried():
    kinds = {promise.model.kind for promise in promises(0.1).values()}
    assert kinds | {"map", "saved", "one-chip"} == set(FAULT_MODELS)


def test_one_chip_is_the_same_whatever_seed_is_asked_for():
    other = Stuck(ber=0.1)
    model = OneChip(faults=other, seed=7)
    wanted = packed(other.cells(SMALL, 7, CPU))
    assert all(np.array_equal(packed(model.cells(SMALL, seed, CPU)), wanted) for seed in (0, 7, 40_000))
    assert (model.ber, model.cell_rate, model.one_chip, model.permanent) == (0.1, 0.1, True, model)
    assert len(model.chips(5)) == 1
    half = model.at(0.05)
    assert np.isin(half.cells(SMALL, 3, CPU).cell, model.cells(SMALL, 3, CPU).cell).all()
    assert from_config(model.to_config()) == model
    mixed = OneChip(faults=Combined(parts=(other, Transient(faults=Flip(ber=0.1)))), seed=7)
    assert np.array_equal(packed(mixed.permanent.cells(SMALL, 0, CPU)), packed(other.cells(SMALL, 7, CPU)))
    with pytest.raises(ConfigError, match="seed must be a whole number of at least 0: got seed=-1"):
        OneChip(faults=other, seed=-1)
    with pytest.raises(ConfigError, match="faults of 'one-chip' must be a fault model: got 'stuck'"):
        OneChip(faults="stuck", seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_can_be_a_part_and_fresh_at_every_read(name):
    model = promises(0.1)[name].model
    assert len(Combined(parts=(Flip(ber=0), model)).cells(SMALL, 0, CPU).cell) > 0
    assert len(Transient(faults=model).cells(SMALL, 0, CPU, read=1).cell) > 0


cells_of_a_few = st.dictionaries(st.integers(0, 12), st.tuples(st.booleans(), st.booleans()))


@given(cells_of_a_few, cells_of_a_few)
@settings(deadline=None)
def test_faults_behind_each_other_equal_one_bit_at_a_time(first, later):
    def faulty(table: dict[int, tuple[bool, bool]]) -> FaultyCells:
        cells = sorted(table)
        keeps, flips = (torch.tensor([table[cell][which] for cell in cells], dtype=torch.bool) for which in (0, 1))
        return FaultyCells(torch.tensor(cells, dtype=torch.int64), keeps, flips)

    one, two = faulty(first), faulty(later)
    both = one.then(two)
    assert both.cell.tolist() == sorted(first.keys() | later.keys())
    for cell, keeps, flips in zip(both.cell.tolist(), both.keeps.tolist(), both.flips.tolist(), strict=True):
        for bit in (False, True):
            wanted = bit
            for table in (first, later):
                own_keeps, own_flips = table.get(cell, (True, False))
                wanted = (wanted and own_keeps) != own_flips
            assert ((bit and keeps) != flips) == wanted
    assert np.array_equal(packed(one), packed(faulty(first))), "the parts were changed"


PART = Asymmetric(ber=0.1, zero_to_one=1), BitRates.protecting(Flip(ber=0.2), msbs=4), Transient(faults=Stuck(ber=0.1))


@pytest.mark.parametrize("part", PART, ids=lambda part: part.kind)
def test_the_rate_of_a_mixture_is_its_share_of_faulty_cells(part):
    model = Combined(parts=(part, Stuck(ber=0.01)))
    count = len(model.cells(LAYOUT, 3, CPU).cell)
    assert within_bounds(count, LAYOUT.cells, model.ber)
    assert model.at(0.03).ber == pytest.approx(0.03)


def test_transient_errors_differ_from_read_to_read_and_permanent_ones_stay():
    lasting, fresh = Stuck(ber=0.1), Transient(faults=Flip(ber=0.05))
    made = Synthetic(ber=0.1, persistent=0.4, array=ARRAY)
    q = made.permanent.ber
    again = 1 - (1 - 0.1) / (1 - q)
    cases = [
        (fresh, None, 0.05**2),
        (BitRates.only(fresh, bit=7), None, None),
        (made, made.permanent, q + (1 - q) * again**2),
        (Combined(parts=(lasting, fresh)), lasting, 0.1 + 0.9 * 0.05**2),
        (Combined(parts=(fresh, fresh)), None, (1 - 0.95**2) ** 2),
    ]
    for model, stays, overlap in cases:
        reads = [model.cells(LAYOUT, 9, CPU, read=read) for read in (0, 1, 0)]
        assert np.array_equal(packed(reads[0]), packed(reads[2]))
        one, two = (set(read.cell.tolist()) for read in reads[:2])
        assert one != two
        if overlap is not None:
            assert within_bounds(len(one & two), LAYOUT.cells, overlap)
        if stays is None:
            assert model.permanent is None
        else:
            kept = model.permanent.cells(LAYOUT, 9, CPU, read=1)
            assert np.array_equal(packed(kept), packed(stays.cells(LAYOUT, 9, CPU)))
            assert set(kept.cell.tolist()) <= one & two
