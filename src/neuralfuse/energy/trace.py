"""What one pass of a model multiplies: every convolution and matrix product, with the weights that it reads.

A pass over one image is watched below the modules, where PyTorch hands operations to its kernels. So it does not matter
whether a layer is a module, a function or an einsum, and attention comes out as the matrix products that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _MaxPoolNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuralfuse.errors import ConfigError, require
from neuralfuse.quant import DEFAULT_LAYERS, Layers

aten = torch.ops.aten
Kind = Literal["convolution", "transposed convolution", "product", "lookup"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The geometry of a convolution, one number for each spatial axis."""

    channels: tuple[int, int]  # in and out, of one group
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A product of matrices, (rows x inner) times (inner x columns), as often as there are groups.

    For a convolution, rows are output pixels, inner is a window and columns are filters; for a transposed one, rows are
    input pixels and columns are the filters' pixels. A lookup takes ``rows`` rows of ``columns`` stored words, as an
    embedding or a sum does, and multiplies nothing.

    Attributes:
        layer: The module that did it.
        kind: What it is.
        weight: The stored tensor that is the right-hand matrix; None where both hold activations, as in attention.
        window: A convolution's geometry.
    """

    layer: str
    kind: Kind
    rows: int
    inner: int
    columns: int
    groups: int = 1
    weight: str | None = None
    window: Window | None = None

    @property
    def macs(self) -> int:
        """Multiplications, each with its addition."""
        return 0 if self.kind == "lookup" else self.groups * self.rows * self.inner * self.columns


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """A stored tensor whose reads are not counted, and why."""

    layer: str
    reason: str


@dataclass
class Trace:
    """One pass over one image.

    Attributes:
        operations: In the order in which they ran.
        unknown: Weights that the memory stores and whose reads are not among them.
        ptflops: MACs as ptflops 0.6.9 counts them, see `paper_macs`.
        parameters: Trainable numbers.
        words: Numbers that the memory stores.
    """

    parameters: int
    words: int
    operations: list[Operation] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    ptflops: int = 0

    @property
    def macs(self) -> int:
        """Multiplications of all convolutions and matrix products."""
        return sum(operation.macs for operation in self.operations)


def trace(model: nn.Module, image: Tensor, layers: Layers = DEFAULT_LAYERS) -> Trace:
    """Run a model on one image and return what it multiplied.

    Args:
        model: Any module; it may lie on the meta device, where a pass costs nothing.
        image: A batch of one image (or any one input), where the model lies.
        layers: Which tensors are weights that the memory stores.
    Raises:
        ConfigError: the batch is not one, the model does not run on the image, or nothing of it can be counted.
    """
    require(image.shape[:1] == (1,), f"an image must be traced alone, (1, ...): got {tuple(image.shape)}.")
    stored = layers.select(model)
    made = Trace(
        parameters=sum(one.numel() for one in model.parameters()), words=sum(one.tensor.numel() for one in stored)
    )
    training = {module: module.training for module in model.modules()}
    model.eval()
    watch = _Watch(made, model, {one.tensor: one.name for one in stored})
    try:
        with torch.no_grad(), _plain_attention(), _hooks(model, watch), watch:
            model(image)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"the model must run on one image of shape {tuple(image.shape)}: {text}") from error
    finally:
        for module, was in training.items():
            module.training = was
    counted = watch.read | {one.layer for one in made.unknown}
    never = "no operation was seen to read it"
    made.unknown += [Unknown(layer=one.name, reason=never) for one in stored if one.name not in counted]
    if not any(operation.weight for operation in made.operations):
        what = "; ".join(f"{one.layer}: {one.reason}" for one in made.unknown)
        raise ConfigError(f"at least one layer must be of a kind that can be counted: got none ({what}).")
    return made


def paper_macs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """Return the MACs of one call of one module, as the paper's Table 7 counts them; it is a reporting convention.

    Biases count one an output, BatchNorm two an input, ReLU and max-pooling one an input, upsampling one an output,
    and a transposed convolution as if its window were slid over the output. Functions outside modules count nothing.

    Source:
        ptflops 0.6.9 (MIT), the tool of the paper; found to give its Table 7 to the printed digit.
    """
    if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
        return 0
    size, made = inputs[0].numel(), output.numel()
    biases = made if getattr(module, "bias", None) is not None else 0
    match module:
        case _ConvTransposeNd():
            counted = math.prod(output.shape[2:]) * module.weight.numel() * len(output) + biases
        case _ConvNd():
            counted = made * module.weight[0].numel() + biases
        case nn.Linear():
            counted = made * module.in_features + biases
        case _BatchNorm():
            counted = 2 * size
        case nn.ReLU() | _MaxPoolNd():
            counted = size
        case nn.Upsample():
            counted = made
        case _:
            counted = 0
    return counted


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation; knows which tensors are weights, or made of weights alone."""

    def __init__(self, made: Trace, model: nn.Module, stored: dict[Tensor, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made, self.layer = made, [type(model).__name__]
        self._kept: list[Tensor] = []  # so that no storage's address is used again while the model runs
        self._names: dict[int, set[str]] = {}
        self.read: set[str] = set()
        for tensor in [*model.parameters(), *model.buffers()]:
            self._remember(tensor, {stored[tensor]} if tensor in stored else set())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and note what it is."""
        output = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        names = set[str]().union(*(self._names.get(self._key(tensor), ()) for tensor in tensors))
        if tensors and all(self._key(tensor) in self._names for tensor in tensors):
            for made in tree_leaves(output):
                if isinstance(made, Tensor):
                    self._remember(made, names)
            return output
        known = _KNOWN.get(function)
        if known is not None:
            self.made.operations += known(self, args, output)
            self.read |= names
        else:
            reason = f"read by {function.name().removesuffix('.default')}, which is not counted"
            self.made.unknown += [Unknown(layer=name, reason=reason) for name in sorted(names)]
        return output

    def name(self, tensor: Tensor) -> str | None:
        """Return which weight a tensor is, the first one of those that it is made of; None for activations."""
        return min(self._names.get(self._key(tensor), ()), default=None)

    def _remember(self, tensor: Tensor, names: set[str]) -> None:
        self._kept.append(tensor)
        self._names.setdefault(self._key(tensor), set()).update(names)

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)


def _convolution(watch: _Watch, args: tuple[Any, ...], output: Tensor) -> list[Operation]:
    x, weight, _, stride, padding, _, transposed, _, groups = args
    axes = x.dim() - 2
    kernel, pixels = tuple(weight.shape[2:]), math.prod(output.shape[2:])
    window = Window(
        channels=(x.shape[1] // groups, output.shape[1] // groups), input=tuple(x.shape[2:]),
        output=tuple(output.shape[2:]), kernel=kernel, stride=_each(stride, axes), padding=_each(padding, axes),
    )  # fmt: skip
    incoming, outgoing = window.channels
    size = {"rows": pixels, "inner": incoming * math.prod(kernel), "columns": outgoing}
    if transposed:
        size = {"rows": math.prod(x.shape[2:]), "inner": incoming, "columns": outgoing * math.prod(kernel)}
    size["rows"] *= x.shape[0]
    kind: Kind = "transposed convolution" if transposed else "convolution"
    return [_operation(watch, kind, weight, **size, groups=groups, window=window)]


def _each(value: Sequence[int], axes: int) -> tuple[int, ...]:
    return tuple(value) * axes if len(value) == 1 else tuple(value)


def _product(watch: _Watch, left: Tensor, right: Tensor, groups: int = 1) -> list[Operation]:
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    if watch.name(left) is not None and watch.name(right) is None:
        left, right, rows, columns = right, left, columns, rows  # (A B)' = B' A': the weights are the columns
    return [_operation(watch, "product", right, rows=rows, inner=inner, columns=columns, groups=groups)]


def _vector_product(watch: _Watch, matrix: Tensor, vector: Tensor) -> list[Operation]:
    return _product(watch, vector[None], matrix.T)


def _lookup(watch: _Watch, args: tuple[Any, ...], output: Any) -> list[Operation]:
    table, places = args[:2]
    return [_operation(watch, "lookup", table, rows=places.numel(), inner=1, columns=table.shape[-1])]


def _each_word_once(watch: _Watch, args: tuple[Any, ...], output: Any) -> list[Operation]:
    read = [one for one in args[:2] if isinstance(one, Tensor) and watch.name(one) is not None]
    return [_operation(watch, "lookup", one, rows=1, inner=1, columns=one.numel()) for one in read]


def _recurrent(watch: _Watch, args: tuple[Any, ...], output: Any) -> list[Operation]:
    x, inputs, states = args[:3]  # (T, N, features); one product for all steps, and then one a step
    return [
        _operation(watch, "product", inputs, rows=len(x) * x.shape[1], inner=x.shape[2], columns=len(inputs)),
        _operation(
            watch, "product", states, rows=x.shape[1], inner=states.shape[1], columns=len(states), groups=len(x)
        ),
    ]


def _operation(watch: _Watch, kind: Kind, weight: Tensor, **size: Any) -> Operation:
    name = watch.name(weight)
    layer = watch.layer[-1] if name is None or "." not in name else name.rpartition(".")[0]
    return Operation(layer=layer, kind=kind, weight=name, **size)


_KNOWN: dict[Any, Callable[[_Watch, tuple[Any, ...], Any], list[Operation]]] = {
    aten.convolution.default: _convolution,
    aten.mm.default: lambda watch, args, _: _product(watch, args[0], args[1]),
    aten.addmm.default: lambda watch, args, _: _product(watch, args[1], args[2]),
    aten.bmm.default: lambda watch, args, _: _product(watch, args[0], args[1], len(args[0])),
    aten.baddbmm.default: lambda watch, args, _: _product(watch, args[1], args[2], len(args[1])),
    aten.mv.default: lambda watch, args, _: _vector_product(watch, args[0], args[1]),
    aten.addmv.default: lambda watch, args, _: _vector_product(watch, args[1], args[2]),
    aten.embedding.default: _lookup,
    aten._embedding_bag.default: _lookup,
    aten._embedding_bag_forward_only.default: _lookup,
    aten.mkldnn_rnn_layer.default: _recurrent,
    **{one.Tensor: _each_word_once for one in (aten.add, aten.sub, aten.mul, aten.div)},
}


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Have attention computed by its matrix products and not by one fused kernel."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _hooks(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Tell the watch which module runs, and count what the paper counts by modules."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(_before(module, name, watch).remove)
            stack.callback(_after(module, watch).remove)
        yield


def _before(module: nn.Module, name: str, watch: _Watch) -> Any:
    return module.register_forward_pre_hook(lambda *_: watch.layer.append(name or watch.layer[0]))


def _after(module: nn.Module, watch: _Watch) -> Any:
    def note(one: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        watch.layer.pop()
        watch.made.ptflops += paper_macs(one, inputs, output)

    return module.register_forward_hook(note)
