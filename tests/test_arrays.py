"""Where words lie in arrays, chips that are made up, voltage curves, and what is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.oracles import within_bounds
from neuralfuse.errors import ConfigError, NeuralFuseError, RateError, UnknownNameError
from neuralfuse.faults import (
    PROFILES,
    WORD_LAYOUTS,
    Array,
    Asymmetric,
    BitRates,
    Chip,
    Clusters,
    Combined,
    FaultyCells,
    Flip,
    Layout,
    Lines,
    Measured,
    Reference,
    Stuck,
    Synthetic,
    VoltageCurve,
    VoltagePoint,
    WordLayout,
    default_curve,
    fault_model,
    from_config,
    synthetic_map,
)

CPU = torch.device("cpu")
WORDS = Layout.of([("a", 3)], 8)


def filled(mapping: WordLayout, array: Array, bits: int):
    """Bank, row and slot of one word after the other: an array filled by hand, for ever."""
    w = array.columns // bits
    for bank in itertools.count():
        physical = bank if array.banks is None else bank % array.banks
        if mapping.order == "rows":
            for row in range(array.rows):
                for _ in range(mapping.repeat or w):
                    yield from ((physical, row, slot) for slot in range(w))
        else:
            for slot in range(w):
                yield from ((physical, row, slot) for row in range(array.rows))


def naive_places(mapping: WordLayout, layout: Layout, array: Array) -> list[tuple[int, int, int]]:
    """Bank, row and column of each cell of an image."""
    places, words = [], itertools.islice(filled(mapping, array, layout.bits), mapping.offset, None)
    for region in layout.regions:
        if mapping.restart:
            words = itertools.islice(filled(mapping, array, layout.bits), mapping.offset, None)
        for bank, row, slot in itertools.islice(words, region.words):
            for bit in range(layout.bits):
                apart = bit * (array.columns // layout.bits) + slot
                places.append((bank, row, apart if mapping.bit_interleaved else slot * layout.bits + bit))
    return places


orders = st.tuples(st.just("rows"), st.integers(0, 3)) | st.just(("interleaved", 1))


@given(
    order=orders,
    mapping=st.fixed_dictionaries(
        {"restart": st.booleans(), "offset": st.integers(0, 50), "bit_interleaved": st.booleans()}
    ),
    bits=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 20), st.none() | st.integers(1, 3)),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_words_lie_where_an_array_filled_by_hand_has_them(order, mapping, bits, shape, sizes, seed):
    array = Array(rows=shape[0], columns=shape[1], banks=shape[2])
    assume(array.columns >= bits)
    mapping = WordLayout(order=order[0], repeat=order[1], **mapping)
    layout = Layout.of([(str(place), words) for place, words in enumerate(sizes)], bits)
    wanted = naive_places(mapping, layout, array)
    located = mapping.locate(layout, array, torch.arange(layout.cells))
    assert list(zip(*(one.tolist() for one in located), strict=True)) == wanted
    virtual = naive_places(mapping, layout, Array(rows=array.rows, columns=array.columns))
    assert mapping.banks(layout, array) == max(bank for bank, _, _ in virtual) + 1

    draw = np.random.RandomState(seed)
    cells = (array.banks or mapping.banks(layout, array)) * array.rows * array.columns
    faulty = np.flatnonzero(draw.rand(cells) < 0.3)
    behaviours = {int(cell): tuple(draw.rand(2) < 0.5) for cell in faulty}
    keeps, flips = (torch.tensor([pair[k] for pair in behaviours.values()], dtype=torch.bool) for k in (0, 1))
    placed = mapping.place(layout, array, FaultyCells(torch.from_numpy(faulty), keeps, flips))
    numbers = [(bank * array.rows + row) * array.columns + column for bank, row, column in wanted]
    hit = [(cell, *behaviours[number]) for cell, number in enumerate(numbers) if number in behaviours]
    got = zip(placed.cell.tolist(), placed.keeps.tolist(), placed.flips.tolist(), strict=True)
    assert list(got) == hit


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linear", ["000 002", "010 012", "100", "102 110"]),
        ("per-layer", ["000 002", "010 012", "100", "000 002"]),
        ("row-interleaved", ["000 010", "002 012", "100", "110 102"]),
        ("bit-interleaved", ["000 001", "010 011", "100", "101 110"]),
        ("reference", ["000 002", "000 002", "010", "000 002"]),
    ],
)
def test_named_mappings_by_hand(name, words):
    """Bank, row and column of bit 0 of five 2-bit words of one tensor and two of another, in banks of 2 x 4 cells."""
    layout, array = Layout.of([("a", 5), ("b", 2)], 2), Array(rows=2, columns=4)
    places = zip(
        *(one[::2].tolist() for one in WORD_LAYOUTS[name].locate(layout, array, torch.arange(14))), strict=True
    )
    assert ["".join(map(str, place)) for place in places] == " ".join(words).split()


def test_a_used_up_array_starts_again_at_its_first_bank():
    layout, array = Layout.of([("a", 10)], 2), Array(rows=2, columns=4, banks=2)
    bank, _, _ = WordLayout().locate(layout, array, torch.arange(20))
    assert bank.tolist() == [0] * 8 + [1] * 8 + [0] * 4
    faults = FaultyCells(torch.tensor([1, 3]), torch.zeros(2, dtype=torch.bool), torch.tensor([True, False]))
    assert WordLayout().place(layout, array, faults).cell.tolist() == [1, 3, 17, 19]


def test_another_mapping_moves_the_faults_and_leaves_the_chip():
    array, layout = Array(rows=16, columns=64), Layout.of([("a", 128 * 3)], 8)
    chips = {name: Lines(ber=0.1, array=array, mapping=name) for name in WORD_LAYOUTS if name != "reference"}
    cells = {name: model.cells(layout, 3, CPU) for name, model in chips.items()}
    assert len({len(one.cell) for one in cells.values()}) == 1
    assert len({tuple(one.cell.tolist()) for one in cells.values()}) == 3  # of one tensor, "per-layer" is "linear"
    shifted = replace(chips["linear"], mapping=WordLayout(offset=128)).cells(layout, 3, CPU).cell + 1024
    assert torch.equal(shifted[shifted < 3072], cells["linear"].cell[cells["linear"].cell >= 1024])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Asymmetric(ber=0.6, zero_to_one=0.9), ConfigError, "ber must be at most 0.555556 for zero_to"),
        (lambda: Asymmetric(ber=0.1, zero_to_one=2), RateError, r"zero_to_one must be in \[0, 1\]"),
        (lambda: Lines(ber=0.3, within=0.2), ConfigError, "ber must be at most within"),
        (lambda: Lines(ber=0.1, along="rows"), UnknownNameError, "unknown line 'rows'. Did you mean 'row'"),
        (lambda: Clusters(ber=0.1, height=0), ConfigError, r"height of a cluster must be in 1\.\.512"),
        (lambda: Clusters(ber=0.1, width=65), ConfigError, r"width of a cluster must be in 1\.\.64"),
        (lambda: Synthetic(ber=1), ConfigError, "ber of a synthetic chip must be below 1"),
        (lambda: Synthetic.like("stutz-4"), UnknownNameError, "unknown chip profile 'stutz-4'"),
        (lambda: Combined(parts=()), ConfigError, "must have at least one part"),
        (lambda: Combined(parts=("flip",)), ConfigError, "parts must be fault models: got 'flip'"),
        (lambda: Combined(parts=(Flip(ber=0),)).at(0.1), ConfigError, r"must have rates inside \(0, 1\)"),
        (lambda: fault_model("transient", faults="flip"), ConfigError, "fault model"),
        (lambda: fault_model("bit-rates", faults="flip", shares=(1,) * 8), ConfigError, "be a fault model"),
        (lambda: BitRates(faults=Flip(ber=0), shares=(2,)), RateError, "share of a bit must be in"),
        (lambda: BitRates.protecting(Flip(ber=0), msbs=9), ConfigError, r"protected bits must be in 0\.\.8"),
        (lambda: BitRates.only(Flip(ber=0), bit=8), ConfigError, r"bit must be in 0\.\.7: got 8"),
        (
            lambda: BitRates(faults=Flip(ber=0), shares=(1,)).cells(WORDS, 0, CPU),
            ConfigError,
            "shares must be one per bit, 8",
        ),
        (lambda: Reference(ber=0.1).cells(WORDS, -1, CPU), ConfigError, "seed must be in"),
        (lambda: from_config({"ber": 0.1}), ConfigError, "a fault model must have a kind"),
        (lambda: from_config({"kind": "stuck"}), ConfigError, "faults 'stuck' must have legal values"),
        (lambda: WordLayout(order="columns"), UnknownNameError, "unknown order 'columns'"),
        (lambda: WordLayout(offset=-1), ConfigError, "offset must be an integer of at least 0: got -1"),
        (lambda: WordLayout(offset=1.5), ConfigError, "offset must"),
        (lambda: WordLayout(restart="no"), ConfigError, "restart must be true or false: got 'no'"),
        (lambda: WordLayout(repeat=-1), ConfigError, "repeat must be an integer of at least 0"),
        (lambda: WordLayout(order="interleaved", repeat=2), ConfigError, "repeat must be 1 for interleaved words"),
        (lambda: WordLayout.of("lines"), UnknownNameError, "unknown mapping 'lines'. Did you mean 'linear'"),
        (lambda: WordLayout.of({"ordre": "rows"}), ConfigError, "a mapping must have fields of"),
        (lambda: Array(rows=0), ConfigError, "rows of an array must be at least 1: got rows=0"),
        (lambda: Array(columns=2.5), ConfigError, "columns of an array must be at least 1"),
        (lambda: Array(banks=0), ConfigError, "banks of an array must be at least 1"),
        (lambda: fault_model("lines", ber=0.1, array={"size": 3}), ConfigError, "must have rows, columns and"),
        (lambda: fault_model("clusters", ber=0.1, array="8x8"), ConfigError, "array must"),
        (lambda: fault_model("lines", ber=0.1, mapping="line"), UnknownNameError, "unknown mapping 'line'"),
        (
            lambda: Lines(ber=0, array=Array(columns=7)).cells(WORDS, 0, CPU),
            ConfigError,
            "word of 8 bits: .* 7 columns",
        ),
    ],
)
def test_impossible_models_arrays_and_mappings_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("mapping", ["linear", "row-interleaved", "bit-interleaved", "reference"])
def test_random_offsets_see_the_whole_measured_chip(mapping):
    made = synthetic_map([Stuck(ber=0.1)], 3, rows=16, columns=32)
    repeat = 4 if mapping == "reference" else 1
    layout = Layout.of([("a", 16 * 4 * repeat)], 8)
    shifting = Measured(map=made, mapping=mapping, random_offset=True)
    placed = [tuple(shifting.cells(layout, seed, CPU).cell.tolist()) for seed in range(300)]
    assert placed[3] == tuple(shifting.cells(layout, 3, CPU).cell.tolist())
    assert {len(one) for one in placed} == {np.count_nonzero(made.cells) * repeat}, "each cell is used equally often"
    assert len(set(placed)) > 0.6 * 64 * repeat, "any word of the array may come first"


@pytest.mark.parametrize(
    "model",
    [Stuck(ber=0), Asymmetric(ber=0, zero_to_one=0.8), Lines(ber=0), Synthetic(ber=0, column_share=0.5)],
    ids=lambda model: model.kind,
)
def test_made_up_maps_say_so_and_nest(model):
    voltages, bers = np.linspace(0.5, 0.8, 10), np.linspace(0.2, 0, 10)
    models = [model.at(ber) for ber in bers.tolist()]
    made = synthetic_map(models, 5, rows=64, columns=32, banks=40, voltages=voltages.tolist())
    assert made.synthetic and made.source.startswith("generated by neuralfuse") and "seed 5" in made.source
    assert made.cells.shape == (10, 40, 64, 32) and made.voltages == tuple(voltages[::-1].tolist())
    assert made.recovered() == 0 and not made.cells[0].any()
    for high, low in itertools.pairwise(made.cells):
        assert ((high == low) | (high == 0)).all(), "a cell reads something else at a lower voltage"
    assert made.rate(0.5) > 0.15


def test_faults_with_a_place_get_the_array_of_the_map_inside_others_too():
    alone, inside = (
        synthetic_map([model], 5, rows=64, columns=32, banks=40)
        for model in (Lines(ber=0.1), Combined(parts=(Lines(ber=0.1),)))
    )
    assert np.array_equal(alone.cells, inside.cells)


@pytest.mark.parametrize(("count", "voltages"), [(2, ()), (2, (0.5,)), (1, (0.5, 0.6)), (2, (0.5, 0.5)), (0, ())])
def test_made_up_maps_need_a_voltage_a_model(count, voltages):
    with pytest.raises(ConfigError, match="voltage|model"):
        synthetic_map([Stuck(ber=0.1)] * count, 5, rows=4, columns=4, voltages=voltages)


@pytest.mark.parametrize("name", PROFILES)
def test_chips_like_a_published_one_have_its_rates(name):
    published, chip = PROFILES[name], Synthetic.like(name)
    layout = Layout.of([("a", 2**18)], 8)
    faults = chip.cells(layout, 3, CPU)
    for flips, rate in ((True, published.zero_to_one), (False, published.one_to_zero)):
        assert within_bounds((faults.flips == flips).sum(), layout.cells, rate)
    assert within_bounds(len(chip.permanent.cells(layout, 3, CPU).cell), layout.cells, published.persistent)
    assert chip.permanent.ber == pytest.approx(published.persistent, rel=1e-9)


CURVE = """\ufeff# source: https://example.org/a: table 2
# Unit: Vmin
# model: yes
voltage, ber, energy

1.0, 0, 1
# in between
0.8, 1e-2, 0.5
0.9, 0.003, 0.7
"""


def test_a_curve_is_interpolated_and_never_extrapolated(tmp_path):
    (tmp_path / "curve.csv").write_text(CURVE, encoding="utf-8")
    curve = VoltageCurve.from_csv(tmp_path / "curve.csv")
    assert (curve.source, curve.unit, curve.model) == ("https://example.org/a: table 2", "Vmin", True)
    assert [point.voltage for point in curve.points] == [0.8, 0.9, 1.0] and curve.range == (0.8, 1.0)
    assert [curve.ber(v) for v in (0.8, 0.9, 1.0)] == [0.01, 0.003, 0], "measured points are kept exactly"
    assert [curve.energy(v) for v in (0.8, 0.9, 1.0)] == [0.5, 0.7, 1]
    for part in (0.1, 0.5, 0.77):
        assert curve.ber(0.8 + 0.1 * part) == pytest.approx(0.01 * 0.3**part)
        assert curve.ber(0.9 + 0.1 * part) == pytest.approx(0.003 * (1 - part))
        assert curve.energy(0.8 * 1.125**part) == pytest.approx(0.5 * 1.4**part)
    for ask, voltage in itertools.product((curve.ber, curve.energy), (0.79, 1.01, math.nan, math.inf)):
        with pytest.raises(ConfigError, match=r"must be on the curve, in \[0.8, 1\] Vmin: got .* extrapolated"):
            ask(voltage)
    (tmp_path / "plain.csv").write_text("# source: x\nvoltage,ber\n0.5,0.1\n0.6,0\n")
    plain = VoltageCurve.from_csv(tmp_path / "plain.csv")
    assert (plain.unit, plain.model) == ("V", False)
    with pytest.raises(ConfigError, match="must have energies for this: x has none at 0.55"):
        plain.energy(0.55)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the voltage curve"),
        ("voltage,ber\n0.5,0.1\n", "must name its source: got none. Add a line '# source: ...'"),
        ("# source: x\n", "must have the columns voltage,ber or voltage,ber,energy: got none"),
        ("# source: x\nV,ber\n0.5,0.1\n", "got V,ber"),
        ("# source: x\nvoltage,ber\n0.5,low\n", "line '0.5,low' must be a point voltage,ber: could not convert"),
        ("# source: x\nvoltage,ber\n0.5\n0.6,0\n", "line '0.5,.*' must be a point voltage,ber"),
        ("# source: x\nvoltage,ber\n0.5,0.1,0.7\n0.6,0\n", "must be a point voltage,ber"),
        ("# source: x\nvoltage,ber\n1,0,0,01\n2,0,0,0\n", "must be a point voltage,ber"),
        ("# source: x\nvoltage,ber\n0.5,12\n0.6,0\n", r"line '0.5,12' must be a point voltage,ber: ber must be in \[0"),
        ("# source: x\nvoltage,ber\n-1,0\n0.6,0\n", "voltage must be positive: got voltage=-1"),
        ("# source: x\nvoltage,ber,energy\n1,0,0\n2,0,1\n", "energy must be positive: got energy=0"),
        ("# source: x\nvoltage,ber\n0.5,0.1\n", "must have at least two points: got 1"),
        ("# source: x\nvoltage,ber\n0.5,0.1\n0.5,0\n", "voltages must rise and rates must not rise with them"),
        ("# source: x\nvoltage,ber\n0.5,0.1\n0.6,0.2\n", "got ber=0.1 at 0.5 and ber=0.2 at 0.6 V"),
        ("# source: x\nvoltage,ber,energy\n1,0,2\n2,0,1\n", "energies must not fall as the voltage rises: got 2 at 1"),
        ("# source: x\n# energy-law: cubic\nvoltage,ber\n1,0\n2,0\n", "unknown energy law 'cubic'. Legal: power"),
    ],
)
def test_files_that_are_no_curves_are_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(NeuralFuseError, match=message):
        VoltageCurve.from_csv(tmp_path / "curve.csv")


def test_the_default_curve_is_its_formula():
    curve = default_curve()
    assert curve.model and "NeuralFuse" in curve.source and curve.range == (0.8, 1)
    for voltage in [*np.linspace(0.8, 0.999999, 200).tolist(), math.nextafter(1, 0)]:
        assert curve.ber(voltage) == pytest.approx(0.01 * 10 ** (23.5 * (0.83 - voltage)), rel=1e-9)
        assert curve.energy(voltage) == pytest.approx(voltage**1.96, rel=2e-4)
    assert (curve.ber(1), curve.energy(1)) == (0, 1)
    assert (curve.ber(0.83), curve.energy(0.83)) == (0.01, 0.694), "the paper's point"
    assert Chip(Reference(ber=0.5), 1).at(0.83).faults.ber == pytest.approx(0.01, rel=1e-9)
    points = (VoltagePoint(voltage=0.5, ber=0.1), VoltagePoint(voltage=1, ber=0, energy=1))
    assert VoltageCurve(points=points, source="x").energy(1) == 1, "it is known there"
