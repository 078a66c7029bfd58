"""Fake quantization: the forward pass uses dequantized weights. The gradient passes straight through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neuralfuse.quant.layers import DEFAULT_LAYERS, Layers
from neuralfuse.quant.scheme import Scheme


def fake_quantize(weight: Tensor, scheme: Scheme, channel_axis: int | None = 0) -> Tensor:
    """Return the dequantized weight. Its gradient is that of the identity.

    Args:
        weight: Floats, any shape.
        scheme: Quantization scheme.
        channel_axis: Axis of the output channels, for one scale per channel.
    Source:
        Straight-through estimator (Bengio et al., arXiv 1308.3432). No weight is clipped, as scales come from max|w|.
    """
    coded = scheme.encode(weight, channel_axis)
    values = scheme.decode(coded.codes, coded.scale, coded.center).to(weight.dtype)
    return values + (weight - weight.detach()) if weight.requires_grad and torch.is_grad_enabled() else values


def quantized_parameters(model: nn.Module, scheme: Scheme, layers: Layers = DEFAULT_LAYERS) -> dict[str, Tensor]:
    """Return the fake-quantized weights of a model by parameter name, for `torch.func.functional_call`."""
    return {
        stored.parameter: fake_quantize(stored.tensor, scheme, stored.channel_axis) for stored in layers.select(model)
    }


def quantized_call(model: nn.Module, x: Tensor, scheme: Scheme | None, layers: Layers = DEFAULT_LAYERS) -> Tensor:
    """Run a model on its fake-quantized weights, or on its float weights if ``scheme`` is None."""
    if scheme is None:
        return model(x)  # type: ignore[no-any-return]
    return functional_call(model, quantized_parameters(model, scheme, layers), (x,))  # type: ignore[no-any-return]


def snap_(model: nn.Module, scheme: Scheme, layers: Layers = DEFAULT_LAYERS) -> nn.Module:
    """Replace a model's weights by their dequantized values, in place. Return the model."""
    with torch.no_grad():
        for stored in layers.select(model):
            stored.tensor.copy_(fake_quantize(stored.tensor, scheme, stored.channel_axis))
    return model
