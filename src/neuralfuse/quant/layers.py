"""The weights of a model that a memory stores, chosen by layer type and name pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from neuralfuse.errors import ConfigError

DEFAULT_TYPES: tuple[type[nn.Module], ...] = (
    _ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
)


def plain_names(model: nn.Module) -> dict[int, tuple[str, str]]:
    """Map each parameter's id to its first name in the module and to that name without wrapper prefixes.

    DataParallel, DDP and `torch.compile` put ``module`` or ``_orig_mod`` before every name. A submodule that merely
    happens to be called ``module`` keeps its name.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = {key: name.replace("_orig_mod.", "") for key, name in own.items()}
    while plain and all(name.startswith("module.") for name in plain.values()):
        plain = {key: name.removeprefix("module.") for key, name in plain.items()}
    return {key: (own[key], plain[key]) for key in own}


@dataclass(frozen=True)
class StoredTensor:
    """One weight tensor that the memory stores.

    Attributes:
        name: Parameter name without wrapper prefixes. Chips are keyed by it.
        parameter: Parameter name in the module, with wrapper prefixes.
        tensor: The parameter.
        channel_axis: Axis of the output channels. In a transposed convolution, all groups share its indices.
    """

    name: str
    parameter: str
    tensor: Tensor
    channel_axis: int


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A choice of weights, by layer type and by parameter name.

    The default types are convolutions (1-d to 3-d, also transposed), linear and bilinear layers, embeddings, attention
    projections and recurrent layers. Biases and normalization parameters are not stored by default. Patterns are shell
    patterns (``*``, ``?``, ``[ab]``) for parameter names such as ``layer1.0.conv1.weight``.

    Attributes:
        types: Layer types whose weights are stored.
        include: Patterns for the names of these weights. A name must match at least one.
        exclude: Patterns for names to leave out. They take precedence.
        extra: Patterns for further parameters to store, of any layer: ``("blocks.*.mixing",)``.
    """

    types: tuple[type[nn.Module], ...] = DEFAULT_TYPES
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude", "extra"):
            if isinstance(getattr(self, name), str):
                text = getattr(self, name)
                raise ConfigError(f"{name} must be a tuple of patterns: got the string {text!r}. Pass ({text!r},).")

    def to_config(self) -> dict[str, Any]:
        """Return the choice as JSON."""
        return {
            "types": [one.__name__ for one in self.types],
            "include": list(self.include),
            "exclude": list(self.exclude),
            "extra": list(self.extra),
        }

    def select(self, model: nn.Module) -> list[StoredTensor]:
        """Return the chosen weights in state_dict order. A tied weight comes once, under its first name.

        Raises:
            ConfigError: no weight is chosen.
        """
        names = plain_names(model)
        chosen: dict[int, StoredTensor] = {}
        for module in model.modules():
            for own_name, tensor in module.named_parameters(recurse=False):
                parameter, name = names[id(tensor)]
                if id(tensor) not in chosen and self._wants(module, own_name, name):
                    axis = 1 if isinstance(module, _ConvTransposeNd) else 0
                    chosen[id(tensor)] = StoredTensor(name, parameter, tensor, axis)
        if not chosen:
            has = ", ".join(name for _, name in names.values()) or "none"
            raise ConfigError(
                f"a memory must store at least one weight: include={self.include}, exclude={self.exclude} match none "
                f"of the parameters {has}."
            )
        return [chosen[key] for key in names if key in chosen]

    def left_out(self, model: nn.Module) -> Iterator[str]:
        """Yield the names of parameters with two or more axes that are not stored, and so stay free of errors."""
        chosen = {id(stored.tensor) for stored in self.select(model)}
        names = plain_names(model)
        for tensor in model.parameters():
            if tensor.dim() >= 2 and id(tensor) not in chosen:
                yield names[id(tensor)][1]

    def _wants(self, module: nn.Module, own_name: str, name: str) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return False
        if any(fnmatchcase(name, pattern) for pattern in self.extra):
            return True
        wanted = isinstance(module, self.types) and _is_weight(module, own_name)
        return wanted and any(fnmatchcase(name, pattern) for pattern in self.include)


def _is_weight(module: nn.Module, own_name: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return own_name.endswith("proj_weight")
    if isinstance(module, nn.RNNBase):
        return own_name.startswith("weight_")
    return own_name == "weight"


DEFAULT_LAYERS = Layers()


def has_weights(model: nn.Module, layers: Layers = DEFAULT_LAYERS) -> bool:
    """Say whether a choice of layers finds any weight in a model."""
    try:
        return len(layers.select(model)) > 0
    except ConfigError:
        return False
