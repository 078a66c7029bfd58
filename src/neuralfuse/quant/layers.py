"""Which tensors of a model are weights that a memory stores: chosen by layer type and by name pattern."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from neuralfuse.errors import ConfigError

_WRAPPERS = {"module", "_orig_mod"}


def plain_name(name: str) -> str:
    """Return a parameter's name without what DataParallel, DDP and `torch.compile` put before it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


@dataclass(frozen=True)
class StoredTensor:
    """One weight tensor that goes into the memory.

    Attributes:
        name: Its name in the model as handed over, wrappers stripped; chips are keyed by it.
        parameter: The name under which the module itself knows it.
        tensor: The parameter.
        channel_axis: The axis of its output channels.
    """

    name: str
    parameter: str
    tensor: Tensor
    channel_axis: int


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A choice of weights: those of the default layer types whose name matches ``include`` and not ``exclude``.

    The default types are convolutions (1-d to 3-d, transposed ones too), linear and bilinear layers, embeddings,
    attention projections and recurrent layers. ``extra`` adds parameters of any other layer by name, for instance
    ``extra=("blocks.*.mixing",)``. Patterns are those of a shell (``*``, ``?``, ``[ab]``), matched against parameter
    names such as ``layer1.0.conv1.weight``. Biases and normalization parameters are never stored by default.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def select(self, model: nn.Module) -> list[StoredTensor]:
        """Return the chosen weights in state_dict order; a tied weight once, under its first name.

        Raises:
            ConfigError: nothing is chosen.
        """
        chosen, seen = [], set()
        for module_name, module in model.named_modules():
            for own_name, tensor in module.named_parameters(recurse=False):
                parameter = f"{module_name}.{own_name}" if module_name else own_name
                name = plain_name(parameter)
                if id(tensor) not in seen and self._wants(module, own_name, name):
                    seen.add(id(tensor))
                    axis = 1 if isinstance(module, _ConvTransposeNd) else 0
                    chosen.append(StoredTensor(name, parameter, tensor, axis))
        if not chosen:
            has = ", ".join(plain_name(name) for name, _ in model.named_parameters()) or "none"
            raise ConfigError(f"a memory must store at least one weight: {self} matches none of the parameters {has}.")
        return chosen

    def left_out(self, model: nn.Module) -> Iterator[str]:
        """Yield the names of parameters with two or more axes that are not chosen, for a look at what is missing."""
        chosen = {id(stored.tensor) for stored in self.select(model)}
        for name, tensor in model.named_parameters():
            if tensor.dim() >= 2 and id(tensor) not in chosen:
                yield plain_name(name)

    def _wants(self, module: nn.Module, own_name: str, name: str) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return False
        if any(fnmatchcase(name, pattern) for pattern in self.extra):
            return True
        return _is_weight(module, own_name) and any(fnmatchcase(name, pattern) for pattern in self.include)


def _is_weight(module: nn.Module, own_name: str) -> bool:
    if isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)):
        return own_name == "weight"
    if isinstance(module, nn.MultiheadAttention):
        return own_name.endswith("proj_weight")
    return isinstance(module, nn.RNNBase) and own_name.startswith("weight_")


DEFAULT_LAYERS = Layers()
