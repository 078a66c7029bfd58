"""Fake quantization: the forward pass sees the values a memory would hold, the gradient passes straight through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neuralfuse.quant.layers import DEFAULT_LAYERS, Layers
from neuralfuse.quant.scheme import Scheme


def fake_quantize(weight: Tensor, scheme: Scheme, channel_axis: int | None = 0) -> Tensor:
    """Return the values of the weight's codes, differentiable as if it were the identity.

    Args:
        weight: Floats, any shape.
        scheme: How to quantize.
        channel_axis: The axis of output channels, for scales by channel.
    Source:
        Straight-through estimator (Bengio et al., arXiv 1308.3432); scales come from max|w|, so nothing is clipped.
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
    """Run a model on its fake-quantized weights; with ``scheme=None`` on its own ones."""
    if scheme is None:
        return model(x)  # type: ignore[no-any-return]
    return functional_call(model, quantized_parameters(model, scheme, layers), (x,))  # type: ignore[no-any-return]


def snap_(model: nn.Module, scheme: Scheme, layers: Layers = DEFAULT_LAYERS) -> nn.Module:
    """Replace a model's weights by the values of their codes, in place; then it runs as quantized without help."""
    with torch.no_grad():
        for stored in layers.select(model):
            stored.tensor.copy_(fake_quantize(stored.tensor, scheme, stored.channel_axis))
    return model
