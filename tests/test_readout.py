"""What a memory controller makes of faulty words, against decoders that go bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.models import AS_IT_IS
from neuralfuse.errors import ConfigError, UnknownNameError
from neuralfuse.faults import Chip, Combined, FaultModel, FaultyCells, Flip, Layout, Stuck, Transient
from neuralfuse.memory import READOUTS, Plain, Reading, Secded, WeightMemory, ZeroFaultyWords, deploy
from neuralfuse.quant import FloatWords, Layers, Scheme

CPU = torch.device("cpu")
Faults = dict[int, tuple[bool, bool]]


@dataclass(frozen=True, kw_only=True)
class Exactly(FaultModel):
    """These cells are inverted, or read 1."""

    kind: ClassVar[str] = "exactly"
    ber: float = 0.0
    which: tuple[int, ...]
    inverted: bool = True

    def cells(self, layout, seed, device, *, read=0):
        cell = torch.tensor(sorted(self.which), device=device)
        assert int(cell[-1]) < layout.cells
        return FaultyCells(cell, torch.full_like(cell, self.inverted).bool(), torch.ones_like(cell).bool())


def read_exactly(memory: WeightMemory, *which: int) -> Reading:
    return memory.read(Chip(Exactly(which=which), 0))


def filled(model: nn.Module, seed: int) -> nn.Module:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=draw)
    return model


def small_model(seed: int, *shapes: tuple[int, int]) -> nn.Module:
    """Linear layers of these shapes, and a layer whose channels lie along its second axis."""
    layers = [nn.utils.skip_init(nn.Linear, *shape) for shape in shapes]
    return filled(nn.Sequential(*layers, nn.utils.skip_init(nn.ConvTranspose2d, 2, 3, (1, 2))), seed)


def weight_of(values: list[list[float]]) -> nn.Module:
    model = nn.utils.skip_init(nn.Linear, len(values[0]), len(values), bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values))
    return model


def faults_of(faults: FaultModel, seed: int, layout: Layout, read: int = 0) -> Faults:
    found = faults.cells(layout, seed, CPU, read=read)
    return dict(zip(found.cell.tolist(), zip(found.keeps.tolist(), found.flips.tolist(), strict=True), strict=True))


def read_bits(stored: list[int], start: int, faults: Faults) -> list[int]:
    """Stored bits as cells from ``start`` on give them back."""
    every = [faults.get(start + place, (True, False)) for place in range(len(stored))]
    return [bit & keeps ^ flips for bit, (keeps, flips) in zip(stored, every, strict=True)]


def bits_of(word: int, width: int) -> list[int]:
    return [word >> place & 1 for place in range(width)]


def number(bits: list[int]) -> int:
    return sum(bit << place for place, bit in enumerate(bits))


def without_sign(memory: WeightMemory, codes: torch.Tensor) -> list[int]:
    return [code & ((1 << memory.layout.bits) - 1) for code in codes.tolist()]


def read_all(memory: WeightMemory, chip: Chip, read: int = 0) -> list[int]:
    """Every word of the image as it is read, without sign; checks that the reading lists the changed words only."""
    reading = memory.read(chip, read=read)
    assert all(one < other for one, other in pairwise(reading.index.tolist()))
    assert (reading.codes != reading.stored).all()
    return without_sign(memory, memory.codes.index_copy(0, reading.index, reading.codes))


def naive_plain(memory: WeightMemory, chip: Chip, read: int = 0) -> list[int]:
    bits, faults = memory.layout.bits, faults_of(chip.faults, chip.seed, memory.layout, read)
    words = enumerate(without_sign(memory, memory.codes))
    return [number(read_bits(bits_of(word, bits), place * bits, faults)) for place, word in words]


class Hamming:
    """An extended Hamming code: places 1..n, check bits at powers of two, the overall parity behind them all."""

    def __init__(self, data_bits: int) -> None:
        self.checks = 0
        while 2**self.checks < data_bits + self.checks + 1:
            self.checks += 1
        self.length = data_bits + self.checks
        self.data_places = [place for place in range(1, self.length + 1) if place.bit_count() > 1]

    def encode(self, data: list[int]) -> list[int]:
        """Return the check bits and the overall parity."""
        code = dict(zip(self.data_places, data, strict=True))
        checks = [sum(bit for place, bit in code.items() if place >> j & 1) % 2 for j in range(self.checks)]
        return [*checks, sum(data + checks) % 2]

    def decode(self, data: list[int], checks: list[int]) -> tuple[list[int], bool]:
        """Return the data after correction, and whether an error was found that cannot be corrected."""
        code = dict(zip(self.data_places, data, strict=True))
        code |= {2**j: bit for j, bit in enumerate(checks[:-1])}
        wrong = sum(2**j for j in range(self.checks) if sum(bit for place, bit in code.items() if place >> j & 1) % 2)
        odd = (sum(code.values()) + checks[-1]) % 2 == 1
        if odd and 1 <= wrong <= self.length:
            code[wrong] ^= 1
        lost = wrong > self.length if odd else wrong != 0
        return [code[place] for place in self.data_places], lost


def naive_secded(memory: WeightMemory, chip: Chip, read: int = 0) -> list[int | None]:
    """Each word as decoded, None where a detected error makes it 0."""
    bits, readout = memory.layout.bits, memory.readout
    code, words = Hamming(readout.data_bits), readout.data_bits // bits
    check_words = -(-(code.checks + 1) // bits)
    blocks = [(one, first) for one in memory.layout.regions for first in range(0, one.words, words)]
    sizes = [(one.name, one.words) for one in memory.layout.regions]
    sizes += [(f"{one.name}.check", -(-one.words // words) * check_words) for one in memory.layout.regions]
    faults = faults_of(chip.faults, chip.seed, Layout.of(sizes, bits), read)
    stored, out = without_sign(memory, memory.codes), []
    for place, (region, first) in enumerate(blocks):
        start, count = region.start + first, min(words, region.words - first)
        data = [bit for word in stored[start : start + count] for bit in bits_of(word, bits)]
        padding = [0] * (readout.data_bits - len(data))
        data_read = read_bits(data, start * bits, faults)
        checks = read_bits(code.encode(data + padding), memory.layout.cells + place * check_words * bits, faults)
        decoded, lost = code.decode(data_read + padding, checks)
        if lost and readout.detected == "zero":
            out += [None] * count
        else:
            out += [number(decoded[word * bits : (word + 1) * bits]) for word in range(count)]
    return out


def naive_zero_faulty(memory: WeightMemory, chip: Chip, read: int = 0) -> list[int | None]:
    bits = memory.layout.bits
    known = chip.faults.permanent
    faulty = {} if known is None else faults_of(known, chip.seed, memory.layout)
    zeroed = {cell // bits for cell, (keeps, flips) in faulty.items() if not keeps or flips}
    return [None if place in zeroed else word for place, word in enumerate(naive_plain(memory, chip, read))]


@lru_cache(maxsize=1)
def nearest_to_zero(memory: WeightMemory) -> list[set[int]]:
    """Of each word, the codes whose value lies nearest to 0: several where a channel has one value only."""
    scheme, out = memory.scheme, []
    top = 1 << scheme.bits
    codes = torch.arange(top) - (top // 2 if scheme.coding == "signed" else 0)

    @cache
    def nearest(scale: float, center: float) -> set[int]:
        size = scheme.decode(codes, torch.tensor(scale), torch.tensor(center)).abs()
        return {int(code) % top for code in codes[size == size.min()]}

    for one in memory.stored:
        coded = scheme.encode(one.tensor, one.channel_axis)
        scales, centers = (each.expand_as(one.tensor).flatten().tolist() for each in (coded.scale, coded.center))
        out += map(nearest, scales, centers)
    return out


def check_words(memory: WeightMemory, got: list[int], wanted: list[int | None]) -> None:
    zeros = nearest_to_zero(memory) if None in wanted else [set()] * len(wanted)
    for word, one, zero in zip(got, wanted, zeros, strict=True):
        assert word in zero if one is None else word == one


cases = {
    "scheme": st.builds(
        Scheme,
        bits=st.sampled_from([2, 4, 8, 16, 3, 5]),
        coding=st.sampled_from(["signed", "unsigned", "asymmetric"]),
        granularity=st.sampled_from(["tensor", "channel"]),
    ),
    "shapes": st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=2),
    "kind": st.sampled_from([Flip, Stuck]),
    "ber": st.sampled_from([0.1, 0.03, 0.3, 0.01, 0.2, 0.0]),
    "seed": st.integers(0, 2**40),
}


@given(**cases, blocks=st.integers(1, 8) | st.sampled_from([16, 32]), detected=st.sampled_from(["keep", "zero"]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_secded_equals_decoding_block_by_block(scheme, shapes, kind, ber, seed, blocks, detected):
    readout = Secded(data_bits=max(2, blocks * scheme.bits), detected=detected)
    memory = WeightMemory(small_model(seed, *shapes), scheme, readout=readout)
    chip, stored = Chip(kind(ber=ber), seed), memory.codes.clone()
    check_words(memory, read_all(memory, chip), naive_secded(memory, chip))
    assert torch.equal(memory.codes, stored)


@pytest.mark.parametrize("coding", ["fp32", "bf16", "fp8-e4m3"])
def test_secded_protects_floating_point_words(coding):
    memory = WeightMemory(small_model(1, (5, 7)), FloatWords(coding=coding), readout=Secded())
    chip = Chip(Transient(faults=Flip(ber=0.02)), 3)
    for read in range(3):
        check_words(memory, read_all(memory, chip, read), naive_secded(memory, chip, read))


def block_cells(memory: WeightMemory, block: int) -> list[int]:
    """The cells of a block of a memory with one tensor: data, check bits, overall parity."""
    bits, data_bits = memory.layout.bits, memory.readout.data_bits
    checks = Hamming(data_bits).checks + 1
    behind = memory.layout.cells + block * -(-checks // bits) * bits
    return [*range(block * data_bits, (block + 1) * data_bits), *range(behind, behind + checks)]


def one_tensor(blocks: int, readout: Secded, bits: int = 8) -> WeightMemory:
    model = filled(nn.utils.skip_init(nn.Linear, readout.data_bits // bits, blocks, bias=False), 4)
    with torch.no_grad():
        model.weight.add_(model.weight.sign())  # no code is 0, so that a word set to zero shows
    return WeightMemory(model, Scheme(bits=bits), readout=readout)


block_sizes = pytest.mark.parametrize(("data_bits", "bits"), [(8, 8), (16, 8), (64, 8), (64, 16), (16, 4)])


@block_sizes
@pytest.mark.parametrize("detected", ["keep", "zero"])
def test_every_single_error_is_corrected(data_bits, bits, detected):
    """Block k has its error at the k-th of its bits, check bits and parity among them."""
    readout = Secded(data_bits=data_bits, detected=detected)
    size = len(block_cells(one_tensor(1, readout, bits), 0))
    memory = one_tensor(size, readout, bits)
    assert len(read_exactly(memory, *(block_cells(memory, block)[block] for block in range(size))).index) == 0


@block_sizes
def test_every_double_error_is_detected(data_bits, bits):
    """Block k has the k-th pair of errors: kept as they are, or all words of the block set to zero."""
    size = len(block_cells(one_tensor(1, Secded(data_bits=data_bits), bits), 0))
    pairs = list(combinations(range(size), 2))
    kept, zeroed = (one_tensor(len(pairs), Secded(data_bits=data_bits, detected=one), bits) for one in ("keep", "zero"))
    which = [block_cells(kept, block)[place] for block, pair in enumerate(pairs) for place in pair]
    reading = read_exactly(zeroed, *which)
    assert len(reading.index) == zeroed.layout.words and not reading.codes.any()
    reading, errors = read_exactly(kept, *which), [cell for cell in which if cell < kept.layout.cells]
    assert reading.index.tolist() == sorted({cell // bits for cell in errors})
    assert round(reading.changed_bits * kept.layout.cells) == len(errors)


def test_a_tensor_s_last_block_ends_with_it():
    """Tensors of 9 and 12 words: blocks of words 0..7, 8, 9..16 and 17..20."""
    memory = WeightMemory(small_model(2, (3, 3)), Scheme(), readout=Secded(detected="zero"))
    for border in (8, 9, 17):  # an error on either side of it: two single errors
        assert len(read_exactly(memory, border * 8 - 1, border * 8).index) == 0
    for block in (range(8), range(8, 9), range(9, 17), range(17, 21)):
        reading = read_exactly(memory, block[0] * 8, block[-1] * 8 + 3)
        assert reading.index.tolist() == [word for word in block if memory.codes[word] != 0]
        assert not reading.codes.any()


def test_check_words_of_a_large_tensor_are_those_of_its_parts():
    codes = torch.randint(-128, 128, (70_000,), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    readout = Secded(data_bits=8)
    whole = readout.encode(codes, Layout.of([("a", 70_000)], 8))
    assert torch.equal(whole, readout.encode(codes, Layout.of([("a", 30_000), ("b", 40_000)], 8)))
    assert torch.equal(whole[:70_000], codes)


@pytest.mark.parametrize(
    ("bits", "data_bits", "overhead"),
    [(8, 64, 1 / 8), (8, 8, 1.0), (16, 64, 1 / 4), (4, 64, 1 / 8), (8, 32, 1 / 4), (4, 16, 1 / 2), (2, 4, 1.0)],
)
def test_overhead_is_the_check_words_share(bits, data_bits, overhead):
    readout, layout = Secded(data_bits=data_bits), Layout.of([("a", 64), ("b", 32)], bits)
    assert readout.overhead(layout) == overhead
    codes = torch.zeros(96, dtype=torch.int16)
    assert readout.encode(codes, layout).numel() == readout.stored(layout).words == round(96 * (1 + overhead))


def test_overhead_counts_whole_blocks_and_flags():
    assert Secded().overhead(Layout.of([("a", 9), ("b", 3)], 8)) == 3 / 12
    assert [ZeroFaultyWords().overhead(Layout.of([("a", 5)], bits)) for bits in (2, 4, 8)] == [1 / 2, 1 / 4, 1 / 8]


@given(**cases)
@settings(max_examples=35, deadline=None, derandomize=True)
def test_zero_faulty_words_equal_flags_set_by_hand(scheme, shapes, kind, ber, seed):
    memory = WeightMemory(small_model(seed, *shapes), scheme, readout=ZeroFaultyWords())
    stays, passes = kind(ber=ber), Transient(faults=Flip(ber=0.05))
    for faults in (stays, passes, Combined(parts=(stays, passes)), Combined(parts=(passes, stays))):
        chip = Chip(faults, seed)
        for read in (0, 1):
            check_words(memory, read_all(memory, chip, read), naive_zero_faulty(memory, chip, read))


def test_a_faulty_cell_that_happens_to_be_right_zeroes_its_word():
    model = weight_of([[127.0, 3.0, 5.0, 7.0]])
    chip = Chip(Exactly(which=(0, 8), inverted=False), 0)
    assert len(WeightMemory(model, Scheme(), readout=Plain()).read(chip).index) == 0
    reading = WeightMemory(model, Scheme(), readout=ZeroFaultyWords()).read(chip)
    assert reading.index.tolist() == [0, 1] and reading.values.tolist() == [0.0, 0.0]


def test_zeros_of_channels_are_their_own_codes():
    model, scheme = weight_of([[-1.0, 0.0, 2.0], [2.0, 5.0, 7.0]]), Scheme(coding="asymmetric", granularity="channel")
    words = read_all(WeightMemory(model, scheme, readout=ZeroFaultyWords()), Chip(Flip(ber=1), 0))
    assert words == [85, 85, 85, 0, 0, 0]  # -1..2 in steps of 1.5 / 127; 2..7 does not reach 0, 2 lies nearest


@given(**cases)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_plain_reads_word_by_word(scheme, shapes, kind, ber, seed):
    memory, chip = WeightMemory(small_model(seed, *shapes), scheme), Chip(kind(ber=ber), seed)
    assert read_all(memory, chip) == naive_plain(memory, chip)


@pytest.mark.parametrize("readout", [Secded(), Secded(data_bits=16, detected="zero"), ZeroFaultyWords()])
def test_a_model_runs_on_what_the_controller_makes_of_its_words(readout, small_net):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    base, chip = deploy(small_net, readout=readout, running=AS_IT_IS), Chip(Stuck(ber=0.02), 11)
    assert torch.equal(base(x), deploy(small_net, running=AS_IT_IS)(x))
    out, reading = base.perturbed(chip)(x), base.memory.read(chip)
    image = base.memory.values.index_copy(0, reading.index, reading.values)
    with torch.no_grad():
        for stored in base.memory.stored:
            stored.tensor.copy_(base.memory.split(image)[stored.name])
    assert len(reading.index) > 0
    assert torch.equal(out, small_net(x))


def test_records_name_a_readout_only_where_there_is_one(small_net):
    assert "readout" not in deploy(small_net).to_config()
    assert "readout" not in deploy(small_net, readout=Plain()).to_config()
    line = Layers(include=("line.*",))  # 27 words: 4 blocks
    correcting = deploy(small_net, layers=line, readout=Secded()).to_config()["readout"]
    assert correcting.pop("overhead") == pytest.approx(4 / 27)
    assert correcting == {"kind": "secded", "data_bits": 64, "detected": "keep"}
    zeroing = deploy(small_net, readout=ZeroFaultyWords()).to_config()["readout"]
    assert zeroing == {"kind": "zero-faulty-words", "overhead": 1 / 8}
    assert set(READOUTS) == {"plain", "secded", "zero-faulty-words"}


@pytest.mark.parametrize("data_bits", [1, 0, -8, 4097, 8.0, "64", None])
def test_illegal_block_sizes_are_refused(data_bits):
    with pytest.raises(ConfigError, match=r"data_bits must be in 2\.\.4096: got"):
        Secded(data_bits=data_bits)


def test_blocks_that_cut_words_and_unknown_readings_are_refused(small_net):
    with pytest.raises(ConfigError, match="data_bits must be a multiple of the word's width, 8: got data_bits=12"):
        deploy(small_net, readout=Secded(data_bits=12))
    with pytest.raises(UnknownNameError, match="unknown reading of detected errors 'zeros'. Did you mean 'zero'"):
        Secded(detected="zeros")
