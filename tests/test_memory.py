"""Chips against slow and obvious oracles, exact rates, and models that run through them."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.func import functional_call

from helpers.models import AS_IT_IS, Wrapper
from helpers.oracles import splitmix64
from neuralfuse.errors import ConfigError, RateError, UnknownNameError
from neuralfuse.faults import (
    Chip,
    Flip,
    Layout,
    Reference,
    Stuck,
    fault_model,
    planning_chips,
    published_chips,
    training_chip,
    validation_chips,
)
from neuralfuse.memory import WeightMemory, deploy
from neuralfuse.memory.deployed import check_output
from neuralfuse.quant import Layers, Scheme
from neuralfuse.seeds import derive, poisson_count, poisson_time

CPU = torch.device("cpu")
KINDS = ["flip", "stuck", "reference"]


def naive_cells(ber: float, seed: int, name: str, cells: int) -> set[int]:
    """Faulty cells of one tensor, one draw at a time."""
    if ber == 1:
        return set(range(cells))
    key = derive(seed, "chip", "cells", name)
    count = poisson_count(cells, poisson_time(ber), key)
    return {int((splitmix64(key, draw) >> 12) * 2.0**-52 * cells) for draw in range(count)}


def naive_polarity(seed: int, name: str, cell: int, share: float) -> int:
    key = derive(seed, "chip", "polarity", name)
    return int((splitmix64(key, cell) >> 12) * 2.0**-52 < share)


def naive_reference_bit(seed: int, ber: float, bits: int, word: int, bit: int) -> int | None:
    """What the paper's map does to a bit: 0, 1, or None for nothing; by tiling and flattening as its code does."""
    per_row = 128 // bits
    row, slot = (word // per_row**2) % 8192, word % per_row
    faulty = np.random.RandomState(seed).rand(8192, 128) < ber
    ones = np.random.RandomState(seed + 1).rand(8192, 128) < 0.5
    column = slot * bits + bit
    return int(ones[row, column]) if faulty[row, column] else None


def naive_read(memory: WeightMemory, chip: Chip) -> list[int]:
    """Every code of the image read bit by bit, in Python integers."""
    bits, faults = memory.scheme.bits, chip.faults
    out = []
    for region in memory.layout.regions:
        cells = naive_cells(faults.ber, chip.seed, region.name, region.words * bits)
        for word in range(region.words):
            code = int(memory.codes[region.start + word]) & ((1 << bits) - 1)
            for bit in range(bits):
                if word * bits + bit not in cells:
                    continue
                if isinstance(faults, Flip):
                    code ^= 1 << bit
                else:
                    one = naive_polarity(chip.seed, region.name, word * bits + bit, faults.stuck_at_1)
                    code = code & ~(1 << bit) | one << bit
            signed = memory.scheme.coding == "signed"
            out.append(code - (1 << bits) if signed and code >> (bits - 1) else code)
    return out


def read_all(memory: WeightMemory, chip: Chip) -> torch.Tensor:
    reading = memory.read(chip)
    return memory.codes.index_copy(0, reading.index, reading.codes)


@given(
    bits=st.integers(2, 16),
    coding=st.sampled_from(["signed", "unsigned", "asymmetric"]),
    ber=st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
    seed=st.integers(0, 2**40),
    share=st.none() | st.floats(0, 1),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
@settings(max_examples=60, deadline=None)
def test_fast_chip_equals_the_naive_one(bits, coding, ber, seed, share, shape):
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, *shape), nn.utils.skip_init(nn.Linear, *shape))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=draw)
    memory = WeightMemory(model, Scheme(bits=bits, coding=coding))
    faults = Flip(ber=ber) if share is None else Stuck(ber=ber, stuck_at_1=share)
    chip = Chip(faults, seed)
    stored = memory.codes.clone()
    read = read_all(memory, chip)
    wanted = naive_read(memory, chip)
    assert read.tolist() == wanted
    assert torch.equal(memory.codes, stored)
    mask = (1 << bits) - 1
    changed = sum(((a ^ b) & mask).bit_count() for a, b in zip(stored.tolist(), wanted, strict=True))
    assert memory.read(chip).changed_bits == pytest.approx(changed / memory.layout.cells)


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
def test_reference_map_equals_the_tiling_written_out(bits):
    """The map is tiled w times along its columns, cut into words and laid over each layer from row 0."""
    sizes = [300_000 if bits == 8 else 9_000, 700]
    layout = Layout.of([("a", sizes[0]), ("b", sizes[1])], bits)
    ber, seed = 0.01, 50_003
    cells = Reference(ber=ber).cells(layout, seed, CPU)
    per_row = 128 // bits
    faulty = np.random.RandomState(seed).rand(8192, 128) < ber
    ones = np.random.RandomState(seed + 1).rand(8192, 128) < 0.5

    def words(plane: np.ndarray) -> np.ndarray:
        row = plane[:, : per_row * bits].reshape(8192, per_row, bits)
        return np.tile(row, (1, per_row, 1)).reshape(-1, bits)

    start, wanted, polarity = 0, [], []
    for size in sizes:
        rows = np.arange(size) % (8192 * per_row**2)
        place = np.flatnonzero(words(faulty)[rows])
        wanted.append(place + start * bits)
        polarity.append(words(ones)[rows].ravel()[place])
        start += size
    assert np.array_equal(cells.cell.numpy(), np.concatenate(wanted))
    assert np.array_equal(cells.flips.numpy(), np.concatenate(polarity))
    assert not cells.keeps.any()


def test_reference_map_starts_again_after_its_last_row():
    layout = Layout.of([("a", 8192 * 256 + 40)], 8)
    cells = Reference(ber=0.05).cells(layout, 1, CPU)
    cell = cells.cell.numpy()
    first, again = cell[cell < 320], cell[cell >= 8192 * 256 * 8] - 8192 * 256 * 8
    assert len(first) > 0
    assert np.array_equal(first, again)
    for place, one in zip(first[:5], cells.flips[:5], strict=True):
        assert naive_reference_bit(1, 0.05, 8, int(place) // 8, int(place) % 8) == int(one)


def test_reference_is_refused_for_wide_words():
    with pytest.raises(ConfigError, match="bits must be at most 8 for faults 'reference': got bits=9"):
        Reference(ber=0.1).cells(Layout.of([("a", 3)], 9), 0, CPU)


@pytest.mark.parametrize("ber", [1e-6, 1e-4, 0.01, 0.3, 0.5])
@pytest.mark.parametrize("kind", ["flip", "stuck"])
def test_rates_lie_within_exact_binomial_bounds(kind, ber):
    bits, words = 8, 200_000
    layout = Layout.of([("a", words // 2), ("b", words // 2)], bits)
    for seed in range(2):
        cells = fault_model(kind, ber=ber).cells(layout, seed, CPU)
        low, high = stats.binom.interval(1 - 1e-7, layout.cells, ber)
        assert low <= len(cells.cell) <= high
        for bit in range(bits):
            low, high = stats.binom.interval(1 - 1e-7, words, ber)
            assert low <= int((cells.cell % bits == bit).sum()) <= high
        if kind == "stuck" and len(cells.cell):
            low, high = stats.binom.interval(1 - 1e-7, len(cells.cell), 0.5)
            assert low <= int(cells.flips.sum()) <= high


def test_flip_changes_every_faulty_bit_and_stuck_about_half():
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        model = nn.Linear(1000, 400)
    with torch.no_grad():
        model.weight.normal_(generator=draw)
    memory = WeightMemory(model, Scheme())
    cells = memory.layout.cells
    for kind, share in (("flip", 1.0), ("stuck", 0.5)):
        faulty = len(fault_model(kind, ber=0.01).cells(memory.layout, 3, CPU).cell)
        changed = round(memory.read(Chip(fault_model(kind, ber=0.01), 3)).changed_bits * cells)
        low, high = stats.binom.interval(1 - 1e-7, faulty, share)
        assert low <= changed <= high


@pytest.mark.parametrize("kind", KINDS)
@given(bers=st.lists(st.floats(0, 1), min_size=2, max_size=3), seed=st.integers(0, 30_000))
@settings(max_examples=15, deadline=None)
def test_faults_nest_across_rates(kind, bers, seed):
    layout = Layout.of([("a", 301), ("b", 5)], 8)
    before: dict[int, bool] = {}
    for ber in sorted(bers):
        cells = fault_model(kind, ber=ber).cells(layout, seed, CPU)
        now = dict(zip(cells.cell.tolist(), cells.flips.tolist(), strict=True))
        assert before.items() <= now.items()
        before = now


@pytest.mark.parametrize("kind", KINDS)
def test_no_faults_at_zero_and_all_cells_at_one(kind):
    layout = Layout.of([("a", 40), ("b", 3)], 8)
    assert len(fault_model(kind, ber=0).cells(layout, 1, CPU).cell) == 0
    assert fault_model(kind, ber=1).cells(layout, 1, CPU).cell.tolist() == list(range(43 * 8))


@pytest.mark.parametrize("kind", ["flip", "stuck"])
def test_a_tensor_s_faults_depend_on_its_name_alone(kind):
    """Not on the order of layers, on other layers, or on wrappers."""
    model = fault_model(kind, ber=0.05)
    one = model.cells(Layout.of([("a", 200), ("b", 100)], 8), 7, CPU)
    two = model.cells(Layout.of([("b", 100), ("c", 50), ("a", 200)], 8), 7, CPU)
    in_b = one.cell >= 1600
    assert torch.equal(one.cell[in_b] - 1600, two.cell[two.cell < 800])
    assert torch.equal(one.flips[in_b], two.flips[two.cell < 800])
    assert torch.equal(one.cell[~in_b], two.cell[two.cell >= 1200] - 1200)


@pytest.mark.parametrize("kind", KINDS)
def test_chip_k_is_the_same_whatever_was_made_before(kind, small_net):
    base = deploy(small_net)
    faults = fault_model(kind, ber=0.02)
    forward = {seed: base.memory.read(Chip(faults, seed)) for seed in range(5)}
    for seed in reversed(range(5)):
        again = deploy(copy.deepcopy(small_net)).memory.read(Chip(faults, seed))
        assert torch.equal(again.index, forward[seed].index)
        assert torch.equal(again.values, forward[seed].values)


def test_wrapped_model_gets_the_same_chip(small_net):
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    chip = Chip(Stuck(ber=0.05), 3)

    wanted = deploy(small_net).perturbed(chip)(x)
    for wrapped in (nn.DataParallel(small_net), Wrapper(small_net)):
        assert torch.equal(deploy(wrapped).perturbed(chip)(x), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("coding", ["signed", "unsigned", "asymmetric"])
def test_perturbed_model_runs_on_the_faulted_codes(kind, granularity, coding, small_net):
    """Against a copy of the model whose weights were set by hand from the codes read."""
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    scheme = Scheme(granularity=granularity, coding=coding)
    base = deploy(small_net, scheme=scheme, running=AS_IT_IS)
    before = {name: tensor.clone() for name, tensor in small_net.state_dict().items()}
    chip = Chip(fault_model(kind, ber=0.03), 11)
    twin = copy.deepcopy(small_net)
    codes = base.memory.split(read_all(base.memory, chip))
    for stored, own in zip(base.memory.stored, Layers().select(twin), strict=True):
        coded = scheme.encode(stored.tensor, stored.channel_axis)
        own.tensor.data = scheme.decode(codes[stored.name], coded.scale, coded.center)
    assert torch.equal(base.perturbed(chip)(x), twin(x))
    clean = functional_call(small_net, base.memory.parameters(base.memory.values), (x,))
    assert torch.equal(base(x), clean)
    assert not torch.equal(base(x), twin(x))
    for name, tensor in small_net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_gradient_reaches_the_input_only(small_net):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
    base = deploy(small_net)
    (base(x).sum() + base.perturbed(Chip(Flip(ber=0.01), 1))(x).sum()).backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in small_net.parameters())


def test_codes_can_be_looked_at(small_net):
    memory = deploy(small_net).memory
    codes = memory.codes_of("conv.weight")
    assert codes.shape == small_net.conv.weight.shape
    assert codes.dtype == torch.int8
    assert codes.abs().max() == 127


def test_half_precision_models_keep_their_type(small_net):
    base = deploy(small_net.to(torch.bfloat16))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert base.perturbed(Chip(Flip(ber=0.01), 1))(x).dtype == torch.bfloat16


def test_half_precision_models_are_evaluated_like_others(small_net):
    base = deploy(small_net.to(torch.bfloat16))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    assert base(x).dtype == base.unquantized(x).dtype == torch.float32
    assert len(base.to_config()["fingerprint"]) == 16


def test_deployed_model_stays_as_it_was_deployed(small_net):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    base = deploy(small_net.train())
    before = base(x)
    base.train()
    assert not base.training
    small_net.train()
    with torch.no_grad():
        small_net.head.bias.add_(1)
        small_net.conv.weight.add_(1)
    assert torch.equal(base(x), before)
    with pytest.raises(ConfigError, match="Move or cast the model first, then deploy it"):
        base.double()


@pytest.mark.parametrize(("classes", "size", "message"), [(4, 8, "must return 4 logits"), (5, 1, "must accept images")])
def test_a_model_that_does_not_fit_the_images_is_refused(classes, size, message, small_net):
    small_net.conv.padding = (0, 0)
    with pytest.raises(ConfigError, match=message):
        check_output(deploy(small_net), torch.zeros(2, 1, size, size, dtype=torch.uint8), classes)


def test_tied_weights_fail_together():
    """A weight that another kind of layer owns too reads faulty in both places."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            head = nn.utils.skip_init(nn.Linear, 6, 6, bias=False)
            self.table, self.head = head.weight, head
            with torch.no_grad():
                head.weight.copy_(torch.eye(6))

        def forward(self, x):
            return self.head(x) + x @ self.table.T

    x = torch.eye(6)
    perturbed = deploy(Tied()).perturbed(Chip(Flip(ber=0.2), 3))(x)
    assert not torch.equal(perturbed, 2 * x)
    base = deploy(Tied())
    reading = base.memory.read(Chip(Flip(ber=0.2), 3))
    faulted = base.memory.values.index_copy(0, reading.index, reading.values).view(6, 6)
    assert torch.equal(perturbed, 2 * faulted.T)


def test_chips_of_training_validation_and_test_never_meet():
    faults = Stuck(ber=0.01)
    training = {training_chip(faults, 0, step, k).seed for step in range(300) for k in range(10)}
    assert max(training) <= 30_000
    assert len(training) > 2500
    validation = {chip.seed for chip in validation_chips(faults, 2500)}
    planning = {chip.seed for chip in planning_chips(faults, 2500)}
    evaluation = {chip.seed for chip in faults.chips(5000)}
    published = [chip.seed for chip in published_chips(faults)]
    assert published == list(range(50_000, 50_010))
    for one, other in itertools.combinations((training, validation, planning, evaluation), 2):
        assert not one & other
    assert not (evaluation | planning) & set(published)
    assert [chip.seed for chip in faults.chips(3)] == [50_010, 50_012, 50_014]


@pytest.mark.parametrize("ber", [-0.1, 1.5, 12.5, float("nan"), float("inf"), "0.1", True, None])
def test_rates_that_are_no_fractions_are_refused(ber):
    with pytest.raises(RateError, match=r"ber must be in \[0, 1\]: got ber=.*Pass a fraction, not percent"):
        Stuck(ber=ber)


def test_unknown_fault_models_and_options_are_refused():
    with pytest.raises(UnknownNameError, match="unknown fault model 'stock'. Did you mean 'stuck'"):
        fault_model("stock", ber=0.1)
    with pytest.raises(ConfigError, match="got 'share'"):
        fault_model("stuck", ber=0.1, share=0.5)
    with pytest.raises(RateError, match="stuck_at_1 must be in"):
        fault_model("stuck", ber=0.1, stuck_at_1=2)
    with pytest.raises(ConfigError, match="chips must be in"):
        Stuck(ber=0.1).chips(0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*KINDS, "asymmetric", "lines", "clusters", "synthetic"])
def test_cuda_gives_the_same_chip(kind, small_net):
    chip = Chip(fault_model(kind, ber=0.05), 9)
    here = deploy(small_net).memory.read(chip)
    there = deploy(copy.deepcopy(small_net).cuda()).memory.read(chip)
    for name in ("index", "codes", "values"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu())
