"""Fold BatchNorm into the convolution before it, in the traced graph of a model in eval mode.

The stored weights do not change. The scales apply to the float weights that are read from the memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

_CONVOLUTIONS: dict[type[nn.Module], Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


@dataclass(frozen=True)
class Folded:
    """A model with BatchNorm folded into its convolutions.

    Attributes:
        module: Gives the model's outputs if its weights are multiplied by ``scales``. Shares the model's submodules.
        scales: Factors for a convolution's output channels, (channels,), by the name of its weight.
    """

    module: nn.Module
    scales: dict[str, Tensor]


def fold(model: nn.Module, weights: Collection[str]) -> Folded | None:
    """Fold each BatchNorm that alone uses the output of a convolution with one of these weights.

    Args:
        model: In eval mode, in float32; not modified.
        weights: Names of the parameters that may be scaled.
    Returns:
        The folded model. None if the model cannot be traced (its forward depends on values) or has nothing to fold.
    Source:
        Jacob et al., Quantization and Training of Neural Networks (CVPR 2018), section 3.2.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # a user's forward may raise anything on a symbolic input
        return None
    modules = dict(model.named_modules(remove_duplicate=False))
    uses = Counter(id(modules[node.target]) for node in graph.nodes if node.op == "call_module")
    owners = Counter(
        id(tensor)
        for module in model.modules()
        for tensor in module.parameters(recurse=False)
    )  # fmt: skip
    own: dict[str, Any] = {}
    scales: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm, conv = modules[node.target], modules[before.target]
        name = f"{before.target}.weight"
        alone = all(uses[id(one)] == 1 and not _hooked(one) for one in (norm, conv))
        if not (alone and name in weights and owners[id(conv.weight)] == 1 and _foldable(conv, norm)):
            continue
        scales[name], own[f"folded_{len(scales)}"] = _scale_and_bias(conv, norm)
        with graph.inserting_before(node):
            weight, bias = graph.get_attr(name), graph.get_attr(f"folded_{len(scales)}")
            settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
            merged = graph.call_function(_CONVOLUTIONS[type(conv)], (before.args[0], weight, bias, *settings))
        node.replace_all_uses_with(merged)
        graph.erase_node(node)
        graph.erase_node(before)
    if not scales:
        return None
    for node in graph.nodes:
        if node.op == "call_module":
            own[node.target] = modules[node.target]
        elif node.op == "get_attr" and node.target not in own:
            own[node.target] = _attribute(model, node.target)
    module = fx.GraphModule(own, graph, type(model).__name__)
    return Folded(module.eval(), scales)


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Return whether these are a plain float32 convolution and a BatchNorm with running statistics."""
    if type(conv) not in _CONVOLUTIONS or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return False
    return conv.padding_mode == "zeros" and conv.weight.dtype == norm.running_mean.dtype == torch.float32


def _scale_and_bias(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the factor of each output channel and the bias of the merged layer: float32 (channels,) each."""
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
        bias = scale * shift
        if norm.bias is not None:
            bias = bias + norm.bias.double()
        return scale.float(), bias.float()


def _hooked(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)


def _attribute(model: nn.Module, path: str) -> Any:
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name)
    return found
