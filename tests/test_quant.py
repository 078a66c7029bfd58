"""Codes: exact integers, round-trips, and the straight-through gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn
from torch.func import functional_call

from neuralfuse.errors import ConfigError, UnknownNameError
from neuralfuse.quant import Layers, Scheme, fake_quantize, quantized_parameters, snap_

weights = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.floats(-8, 8, width=32, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-6),
)
schemes = st.builds(
    Scheme,
    bits=st.integers(2, 16),
    coding=st.sampled_from(["signed", "unsigned", "asymmetric"]),
    granularity=st.sampled_from(["tensor", "channel"]),
)


@given(weights, schemes)
@settings(max_examples=100, deadline=None)
def test_round_trip_is_within_half_a_step(array, scheme):
    weight = torch.from_numpy(array.copy())
    coded = scheme.encode(weight)
    values = scheme.decode(coded.codes, coded.scale, coded.center)
    slack = 1e-6 * (1 + weight.abs().max())
    assert ((values - weight).abs() <= coded.scale / 2 + slack).all()
    assert coded.codes.dtype == scheme.dtype
    assert coded.codes.long().min() >= scheme.offset - scheme.limit
    assert coded.codes.long().max() <= scheme.offset + scheme.limit


@given(weights, schemes)
@settings(max_examples=100, deadline=None)
def test_codes_of_decoded_codes_are_the_codes(array, scheme):
    coded = scheme.encode(torch.from_numpy(array.copy()))
    if scheme.coding == "asymmetric":
        return  # its range need not be reached by a code when all weights are equal
    again = scheme.encode(scheme.decode(coded.codes, coded.scale, coded.center))
    assert torch.equal(again.codes, coded.codes)


@pytest.mark.parametrize("bits", range(2, 17))
def test_signed_codes_equal_the_formula_in_numpy(bits):
    weight = np.random.RandomState(bits).randn(64, 9).astype(np.float32)
    limit = 2 ** (bits - 1) - 1
    delta = np.float32(np.abs(weight).max()) / np.float32(limit)
    wanted = np.round(np.clip(weight / delta, -limit, limit))
    assert np.array_equal(Scheme(bits=bits).encode(torch.from_numpy(weight)).codes.numpy(), wanted)


def test_signed_codes_are_two_s_complement_bytes():
    codes = Scheme().encode(torch.tensor([1.0, -1.0, 0.0, 0.5])).codes
    assert codes.numpy().view(np.uint8).tolist() == [127, 129, 0, 64]


def test_rounding_is_half_to_even():
    weight = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5])
    assert Scheme().encode(weight).codes.tolist() == [127, 0, 2, 2, 0, -2]


def test_floor_rounds_down():
    weight = torch.tensor([7.0, 0.9, -0.1, -6.5])
    assert Scheme(bits=4, rounding="floor").encode(weight).codes.tolist() == [7, 0, -1, -7]


@pytest.mark.parametrize(("coding", "codes"), [("unsigned", [254, 127, 63]), ("asymmetric", [254, 85, 0])])
def test_unsigned_variants_equal_the_reference_s_arithmetic(coding, codes):
    weight = torch.tensor([2.0, 0.0, -1.0])
    scheme = Scheme(coding=coding)
    coded = scheme.encode(weight)
    assert coded.codes.tolist() == codes
    decoded = scheme.decode(coded.codes, coded.scale, coded.center)
    assert torch.allclose(decoded, weight, atol=float(coded.scale) / 2)


def test_unsigned_values_are_clamped_to_the_layer_s_range_when_read():
    scheme = Scheme(coding="asymmetric")
    coded = scheme.encode(torch.tensor([2.0, 0.0, -1.0]))
    read = scheme.decode(torch.tensor([255], dtype=torch.uint8), coded.scale, coded.center)
    assert read.item() == pytest.approx(2.0)


def test_all_zero_weights_have_scale_one_and_codes_zero():
    coded = Scheme().encode(torch.zeros(3, 2))
    assert coded.scale.item() == 1
    assert coded.codes.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(("coding", "value"), [("unsigned", 0.0), ("asymmetric", 0.0), ("asymmetric", 0.5)])
def test_unsigned_layers_of_one_value_read_nothing_else(coding, value):
    scheme = Scheme(coding=coding)
    coded = scheme.encode(torch.full((3, 2), value))
    assert coded.codes.tolist() == [[scheme.offset] * 2] * 3
    every = scheme.decode(torch.arange(256).to(torch.uint8), coded.scale, coded.center)
    assert (every == value).all()


@given(st.floats(0.0009765625, 100, width=32), st.integers(2, 16), st.sampled_from(["signed", "unsigned"]))
@settings(deadline=None)
def test_floor_keeps_the_largest_weight_s_code(largest, bits, coding):
    scheme = Scheme(bits=bits, rounding="floor", coding=coding)
    codes = scheme.encode(torch.tensor([largest, -largest, 0.0])).codes.long() - scheme.offset
    assert codes.tolist() == [scheme.limit, -scheme.limit, 0]


def test_channels_have_their_own_scales():
    weight = torch.tensor([[1.0, 0.5], [100.0, 50.0]])
    coded = Scheme(granularity="channel").encode(weight, channel_axis=0)
    assert coded.scale.flatten().tolist() == pytest.approx([1 / 127, 100 / 127])
    assert coded.codes.tolist() == [[127, 64], [127, 64]]


def test_gradient_passes_straight_through():
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factors = torch.arange(12.0).view(4, 3)
    quantized = fake_quantize(weight, Scheme(bits=3))
    (quantized * factors).sum().backward()
    assert torch.equal(weight.grad, factors)
    coded = Scheme(bits=3).encode(weight)
    assert torch.equal(quantized, coded.codes * coded.scale)


def test_snapped_model_runs_as_fake_quantized(small_net):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    scheme = Scheme(bits=5)
    wanted = functional_call(small_net, quantized_parameters(small_net, scheme), (x,))
    assert torch.equal(snap_(small_net, scheme)(x), wanted)


@pytest.mark.parametrize("bad", [{"bits": 1}, {"bits": 17}, {"bits": 8.0}])
def test_illegal_width_is_refused(bad):
    with pytest.raises(ConfigError, match=r"bits must be in 2\.\.16: got bits="):
        Scheme(**bad)


def test_unknown_coding_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'signed'"):
        Scheme(coding="singed")


def test_weights_with_nan_are_refused():
    with pytest.raises(ConfigError, match="finite"):
        Scheme().encode(torch.tensor([1.0, float("nan")]))


def test_default_layers_are_the_weights_of_every_kind():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv3d = nn.Conv3d(1, 2, 3)
            self.up1d = nn.ConvTranspose1d(2, 2, 2)
            self.words = nn.Embedding(7, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.cross = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
            self.memory = nn.LSTM(4, 4)
            self.norm = nn.LayerNorm(4)
            self.free = nn.Parameter(torch.ones(3, 3))

    with torch.random.fork_rng():
        model = Many()
    chosen = [stored.name for stored in Layers().select(model)]
    assert chosen == [
        "conv3d.weight",
        "up1d.weight",
        "words.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "cross.q_proj_weight",
        "cross.k_proj_weight",
        "cross.v_proj_weight",
        "cross.out_proj.weight",
        "memory.weight_ih_l0",
        "memory.weight_hh_l0",
    ]
    assert list(Layers().left_out(model)) == ["free"]
    assert [stored.name for stored in Layers(include=(), extra=("free",)).select(model)] == ["free"]


def test_layers_are_chosen_by_pattern(small_net):
    names = [stored.name for stored in Layers(include=("*conv*", "head*"), exclude=("head.weight",)).select(small_net)]
    assert names == ["conv.weight"]
    with pytest.raises(ConfigError, match="match none of the parameters conv.weight"):
        Layers(include=("layer9.*",)).select(small_net)


def test_layers_are_chosen_by_type(small_net):
    assert [stored.name for stored in Layers(types=(nn.Linear,)).select(small_net)] == ["head.weight"]
    assert "conv.weight" in list(Layers(types=(nn.Linear,)).left_out(small_net))


def test_tied_weights_are_stored_once_under_their_first_name():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert [stored.name for stored in Layers().select(model)] == ["0.weight"]


def holder(**children: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    return model


def test_a_weight_tied_to_another_kind_of_layer_keeps_its_first_name():
    linear = nn.utils.skip_init(nn.Linear, 4, 4)
    model = nn.Module()
    model.table = linear.weight
    model.head = linear
    assert [(stored.name, stored.parameter) for stored in Layers().select(model)] == [("table", "table")]


def test_wrappers_do_not_change_names(small_net):
    names = [stored.name for stored in Layers().select(small_net)]
    for wrapped in (holder(module=small_net), holder(_orig_mod=small_net), holder(module=holder(_orig_mod=small_net))):
        assert [stored.name for stored in Layers().select(wrapped)] == names


def test_a_submodule_called_module_keeps_its_name():
    def layer():
        return nn.utils.skip_init(nn.Linear, 2, 2)

    model = holder(fc=layer(), module=holder(fc=layer()))
    assert [stored.name for stored in Layers().select(model)] == ["fc.weight", "module.fc.weight"]
