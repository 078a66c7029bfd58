"""Words that are not our integer codes: floating-point formats, and weights that somebody else has quantized."""

from __future__ import annotations

import copy
import struct

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.oracles import faulty_tensor, faulty_words, set_by_hand, x_of
from neuralfuse.errors import ConfigError, UnknownNameError
from neuralfuse.faults import BitRates, Chip, Flip, Stuck
from neuralfuse.memory import WeightMemory, ZeroFaultyWords, deploy
from neuralfuse.quant import DEFAULT_ADAPTERS, FloatWords, InnerTensors, Layers, Scheme

FORMATS = {"fp32": (8, 23), "fp16": (5, 10), "bf16": (8, 7), "fp8-e4m3": (4, 3), "fp8-e5m2": (5, 2)}


def meaning(coding: str, code: int) -> float:
    """The number that a floating-point word means, from its sign, exponent and mantissa."""
    exponent_bits, mantissa_bits = FORMATS[coding]
    magnitude, top = code & ((1 << exponent_bits + mantissa_bits) - 1), (1 << exponent_bits) - 1
    sign = 1.0 if magnitude == code else -1.0
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    if coding == "fp8-e4m3" and magnitude == 127:
        return float("nan")  # the only one: this format has no infinity, and numbers in its highest exponent
    if coding != "fp8-e4m3" and exponent == top:
        return float("nan") if mantissa else sign * float("inf")
    lowest = 2.0 ** (1 - top // 2 - mantissa_bits)
    size = (mantissa + (1 << mantissa_bits)) * 2.0 ** (exponent - 1) if exponent else mantissa
    return sign * size * lowest


def pattern(coding: str, value: float) -> int:
    """The word of the number next to a value; the even one of two as near."""
    if coding in ("fp32", "bf16"):
        (whole,) = struct.unpack("<I", struct.pack("<f", value))
        return whole if coding == "fp32" else whole + 0x7FFF + (whole >> 16 & 1) >> 16
    if coding == "fp16":
        return struct.unpack("<H", struct.pack("<e", value))[0]
    own_sign = range(128, 256) if np.signbit(value) else range(128)
    codes = [code for code in own_sign if np.isfinite(meaning(coding, code))]
    return min(codes, key=lambda code: (abs(meaning(coding, code) - value), code % 2))


@pytest.mark.parametrize("coding", FORMATS)
def test_codes_are_the_bit_patterns(coding):
    draw = np.random.RandomState(3)
    some = [0.0, -0.0, 1.0, -1.5, 240.0, 17.0, 19.0, 6e-8]
    values = np.concatenate([draw.randn(300), draw.randn(100) * 1e-3, some]).astype(np.float32)
    scheme = FloatWords(coding=coding)
    coded = scheme.encode(torch.from_numpy(values).view(-1, 2))
    codes = [code & ((1 << scheme.bits) - 1) for code in coded.codes.flatten().tolist()]
    assert scheme.bits == 1 + sum(FORMATS[coding])
    assert codes == [pattern(coding, float(value)) for value in values]
    decoded = scheme.decode(coded.codes, coded.scale, coded.center).flatten().tolist()
    assert decoded == [meaning(coding, code) for code in codes]
    assert scheme.zero(coded.scale, coded.center).item() == pattern(coding, 0.0) == 0


@pytest.mark.parametrize("coding", ["fp16", "bf16", "fp8-e4m3", "fp8-e5m2"])
def test_every_bit_pattern_means_what_the_format_says(coding):
    scheme = FloatWords(coding=coding)
    every = np.arange(1 << scheme.bits).astype(np.uint16 if scheme.bits == 16 else np.uint8)
    codes = torch.from_numpy(every.view(np.int16) if scheme.bits == 16 else every)
    one = torch.ones(())
    got = scheme.decode(scheme.signed(codes), one, 0 * one).numpy()
    wanted = np.array([meaning(coding, code) for code in range(1 << scheme.bits)], np.float32)
    assert np.array_equal(got, wanted, equal_nan=True)


@pytest.mark.parametrize("coding", FORMATS)
@pytest.mark.parametrize("kind", [Flip, Stuck])
def test_floating_point_words_are_read_bit_by_bit(coding, kind, small_net):
    base, chip = deploy(small_net, scheme=FloatWords(coding=coding)), Chip(kind(ber=0.05), 7)
    bits, reading, wanted = base.memory.scheme.bits, base.memory.read(chip), []
    for stored in base.memory.stored:
        patterns = [pattern(coding, value) for value in stored.tensor.flatten().tolist()]
        wanted += faulty_words(patterns, stored.name, bits, chip)
    read = base.memory.codes.index_copy(0, reading.index, reading.codes)
    assert [code & ((1 << bits) - 1) for code in read.tolist()] == wanted
    values = np.array([meaning(coding, word) for word in wanted], np.float32)
    assert np.array_equal(reading.values.numpy(), values[reading.index], equal_nan=True)
    assert reading.not_finite == (~np.isfinite(values)).sum()
    out, by_hand = base.perturbed(chip)(x_of()), set_by_hand(small_net, base, chip)(x_of())
    torch.testing.assert_close(out, by_hand, rtol=0, atol=0, equal_nan=True)


def test_infinite_and_undefined_weights_are_counted():
    model = nn.Linear(4, 1, bias=False, device="meta")
    model.weight = nn.Parameter(torch.tensor([[1.0, -1.5, 0.0, 2.0]]))
    memory = WeightMemory(model, FloatWords(coding="fp16"))
    exponents = BitRates(faults=Stuck(ber=1, stuck_at_1=1.0), shares=(0.0,) * 10 + (1.0,) * 5 + (0.0,))
    reading = memory.read(Chip(exponents, 0))
    assert reading.index.tolist() == [0, 1, 2, 3] and reading.not_finite == 4
    assert reading.values[[0, 2, 3]].tolist() == [float("inf")] * 3 and reading.values[1].isnan()
    signs = BitRates.only(Flip(ber=1), bit=15, bits=16)
    assert memory.read(Chip(signs, 0)).values.tolist() == [-1.0, 1.5, -0.0, -2.0]
    assert memory.read(Chip(signs, 0)).not_finite == 0


TOO_LARGE = {"fp16": 65_520.0, "bf16": 3.4e38, "fp8-e4m3": -500.0, "fp8-e5m2": 65_000.0}


@pytest.mark.parametrize(
    ("coding", "value"),
    [*((coding, value) for coding in FORMATS for value in (float("nan"), float("-inf"))), *TOO_LARGE.items()],
)
def test_weights_that_a_format_cannot_hold_are_refused(coding, value):
    with pytest.raises(ConfigError, match=f"weights must be finite in {coding} to be stored"):
        FloatWords(coding=coding).encode(torch.tensor([1.0, value]))


def test_unknown_formats_are_refused():
    with pytest.raises(UnknownNameError, match="unknown floating-point format 'fp8-e4m4'. Did you mean 'fp8-e4m3'"):
        FloatWords(coding="fp8-e4m4")


class Packed(nn.Module):
    """A linear layer of 4-bit weights, two in each byte."""

    def __init__(self, out: int, into: int, seed: int = 0) -> None:
        super().__init__()
        words = torch.randint(
            0, 256, (out, into // 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
        )
        self.packed = nn.Parameter(words, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        nibbles = torch.stack([self.packed & 15, self.packed >> 4], 2).flatten(1)
        return x.flatten(1) @ (nibbles.to(x.dtype) - 8).T / 8


class Bytes:
    """The adapter of such weights."""

    def matches(self, weight: Tensor) -> bool:
        return weight.dtype == torch.uint8

    def codes(self, weight: Tensor) -> Tensor:
        return weight

    def with_codes(self, weight: Tensor, codes: Tensor) -> Tensor:
        assert codes.dtype == weight.dtype and codes.shape == weight.shape
        return codes


PACKED = {"layers": Layers(extra=("*packed",)), "adapters": (Bytes(), *DEFAULT_ADAPTERS)}


def convolution() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten()).eval()


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(coding="asymmetric"), FloatWords(coding="fp8-e4m3")])
def test_packed_words_are_read_through_an_adapter_beside_other_weights(scheme):
    model = nn.Sequential(convolution(), Packed(6, 64))
    before = model[1].packed.clone()
    base, chip, x = deploy(model, scheme=scheme, **PACKED), Chip(Flip(ber=0.05), 5), x_of().requires_grad_()
    assert torch.equal(base.memory.codes_of("1.packed").view(torch.uint8), before)
    twin = set_by_hand(model, base, chip)
    twin[1].packed.copy_(faulty_tensor(before, "1.packed", 8, chip))
    out, by_hand = base.perturbed(chip)(x), twin(x)
    assert torch.equal(out, by_hand)
    assert torch.equal(*(torch.autograd.grad(one.square().sum(), x)[0] for one in (out, by_hand)))
    assert torch.equal(model[1].packed, before) and not torch.equal(twin[1].packed, before)


def test_a_model_of_packed_words_only_takes_its_inputs_as_they_are():
    model = nn.Sequential(nn.Flatten(), Packed(6, 64))
    base, chip, x = deploy(model, **PACKED), Chip(Flip(ber=0.05), 5), x_of()
    assert torch.equal(base(x), model(x))
    twin = copy.deepcopy(model)
    twin[1].packed.copy_(faulty_tensor(model[1].packed, "1.packed", 8, chip))
    assert torch.equal(base.perturbed(chip)(x), twin(x))


@pytest.fixture(scope="module")
def int8_net() -> nn.Module:
    """A convolution in floating point and linear layers that torchao has quantized."""
    torchao = pytest.importorskip("torchao.quantization")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(convolution(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 5)).eval()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


QUANTIZED = ("1.weight", "3.weight")


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(coding="unsigned", granularity="channel")])
def test_int8_weights_of_torchao_are_read_as_they_lie(scheme, int8_net):
    state = {name: copy.deepcopy(tensor) for name, tensor in int8_net.state_dict().items()}
    base, chip, x = deploy(int8_net, scheme=scheme), Chip(Stuck(ber=0.05), 5), x_of().requires_grad_()
    twin = set_by_hand(int8_net, base, chip)
    for name in QUANTIZED:
        words = int8_net.get_parameter(name).qdata
        assert torch.equal(base.memory.codes_of(name).view(torch.int8), words)
        twin.get_parameter(name).qdata.copy_(faulty_tensor(words, name, 8, chip))
    out, by_hand = base.perturbed(chip)(x), twin(x)
    assert torch.equal(out, by_hand)
    assert torch.equal(*(torch.autograd.grad(one.square().sum(), x)[0] for one in (out, by_hand)))
    assert not torch.equal(out, base(x))
    for name, tensor in int8_net.state_dict().items():
        inner = (tensor.qdata, state[name].qdata) if name in QUANTIZED else (tensor, state[name])
        assert torch.equal(*inner), name


def test_int8_weights_of_torchao_run_clean_as_before(int8_net):
    for layers in (Layers(types=(nn.Linear,)), Layers(types=(nn.Linear,), exclude=("1.weight",))):
        assert torch.equal(deploy(int8_net, layers=layers)(x_of()), int8_net(x_of()))


def test_models_with_int8_weights_of_torchao_can_be_recorded(int8_net):
    config, twin = deploy(int8_net).to_config(), copy.deepcopy(int8_net)
    assert config["left_out"] == [] and len(config["fingerprint"]) == 16
    assert deploy(twin).to_config() == config
    twin.get_parameter("3.weight").qdata[0, 0] ^= 1
    assert deploy(twin).to_config()["fingerprint"] != config["fingerprint"]


def test_int8_weights_of_torchao_evaluate_and_then_train_what_lies_before(int8_net):
    perturbed, x = deploy(int8_net).perturbed(Chip(Flip(ber=0.05), 1)), x_of().requires_grad_()
    with torch.inference_mode():
        out = perturbed(x)
    again = perturbed(x)
    again.sum().backward()
    assert torch.equal(out, again) and x.grad.abs().sum() > 0


def test_a_deployed_model_keeps_its_inner_tensors_too(int8_net):
    model, x = copy.deepcopy(int8_net), x_of()
    base = deploy(model)
    before = base(x)
    for name in ("qdata", "scale"):
        getattr(model.get_parameter("1.weight"), name).mul_(2)
    assert torch.equal(base(x), before)


def test_words_known_to_be_faulty_read_zero_behind_an_adapter_too(int8_net):
    base = deploy(int8_net, scheme=Scheme(coding="unsigned"), readout=ZeroFaultyWords())
    reading = base.memory.read(Chip(Stuck(ber=1), 0))
    image = base.memory.codes.index_copy(0, reading.index, reading.codes)
    for name, codes in base.memory.split(image).items():
        assert (codes == (0 if name in QUANTIZED else 127)).all()


@pytest.mark.parametrize(
    "scheme", [Scheme(bits=4), Scheme(bits=16), FloatWords(coding="fp16"), FloatWords(coding="fp32")]
)
def test_words_of_two_widths_in_one_memory_are_refused(scheme):
    model = nn.Sequential(convolution(), Packed(6, 64))
    message = (
        f"all words of a memory must have the same width: '1.packed' has 8-bit words, the scheme has {scheme.bits}-bit"
    )
    with pytest.raises(ConfigError, match=message):
        deploy(model, scheme=scheme, **PACKED)
    assert deploy(model, scheme=scheme, layers=Layers(exclude=("1.*",)), adapters=(Bytes(),)).memory.layout.words == 100


@pytest.mark.parametrize(
    ("dtype", "scheme"),
    [(torch.int16, Scheme(bits=16, coding="unsigned")), (torch.int32, FloatWords(coding="fp32"))],
)
def test_words_of_one_width_that_do_not_fit_are_refused_for_another_reason(dtype, scheme):
    """A message that names one width twice helps nobody."""

    class Wide(Bytes):
        def matches(self, weight):
            return weight.dtype == dtype

    model = nn.Module()
    model.words = nn.Parameter(torch.zeros(3, 4, dtype=dtype), requires_grad=False)
    with pytest.raises(ConfigError, match="'words'") as refused:
        deploy(model, scheme=scheme, layers=Layers(extra=("words",)), adapters=(Wide(),))
    assert f"has {scheme.bits}-bit words, the scheme has {scheme.bits}-bit words" not in str(refused.value)


def test_inner_tensors_are_found_by_their_name():
    class Inner(Tensor):
        def __tensor_flatten__(self):
            return ["words"], None

    weight = torch.zeros(2).as_subclass(Inner)
    assert not InnerTensors().matches(torch.zeros(2)) and not InnerTensors("words").matches(weight)
    weight.words = torch.zeros(2)
    assert not InnerTensors("words").matches(weight)
    weight.words = torch.zeros(2, dtype=torch.uint8)
    assert InnerTensors("words").matches(weight) and InnerTensors("words").codes(weight) is weight.words
