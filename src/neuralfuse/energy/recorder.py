"""Record the operations of a pass below the modules, where PyTorch dispatches to its kernels.

There a module, a function and an einsum look the same, and attention consists of its matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuralfuse.energy.operations import Kind, Operation, Trace, Window
from neuralfuse.energy.paper import in_convention


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation of a pass, and tracks which tensors depend on the image and which on weights alone.

    Args:
        trace: The trace to add the operations to.
        model: The model.
        image: The input of the pass.
        stored: Name of each tensor that the memory stores.
    """

    def __init__(self, trace: Trace, model: nn.Module, image: Tensor, stored: dict[Tensor, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.modules = [("", model)]  # stack of the running modules and their names
        self.stored = set(stored.values())
        self.read = set[str]()  # names of the weights that a counted operation read
        self._kept: list[Tensor] = []  # holds these tensors, so that no other tensor gets their address
        self._names: dict[int, set[str]] = {}
        self._data = {_key(image)}  # keys of the storages that depend on the image
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            for part in _parts(tensor):
                self._remember(part, {stored.get(tensor, name)})

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and record it."""
        kwargs, operation = kwargs or {}, function._schema.name
        if operation not in _PRODUCTS:  # split a composite one: `with self` sends its parts through this method again
            with self:
                output = function.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        names = set[str]().union(*map(self.names, tensors))
        if operation in _PRODUCTS:
            self._count(_PRODUCTS[operation](self, args, output))
        elif not any(_key(tensor) in self._data for tensor in tensors):
            # No input depends on the image, so neither does the output. It keeps the names of its weights.
            for result in _tensors(output):
                self._data.discard(_key(result))  # its storage may reuse the address of a freed activation
                self._remember(result, names)
            return output
        elif operation in _ELEMENTWISE:
            self._count(_each_word_once(self, args))
        else:
            # An operation from outside PyTorch may multiply, as a heavy one does: report it in any case.
            foreign = not operation.startswith(("aten::", "prim::", "prims::"))
            may_multiply = foreign or operation.startswith(_HEAVY)
            for name in sorted(names if may_multiply else names & self.stored):
                self.trace.add_unknown(name, f"read by {operation}, which is not counted")
            if may_multiply and not names:
                self.trace.add_unknown(self.layer, f"runs {operation}, which is not counted")
        self._data.update(map(_key, _tensors(output)))
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, Tensor):  # written in place: it now depends on the image
                self._data.add(_key(value))
        return output

    @property
    def layer(self) -> str:
        """Name of the running module."""
        name, module = self.modules[-1]
        return name or type(module).__name__

    def names(self, tensor: Tensor) -> set[str]:
        """Return the names of the weights in a tensor that does not depend on the image. Otherwise return none."""
        key = _key(tensor)
        return set() if key in self._data else self._names.get(key, set())

    def name(self, tensor: Tensor) -> str | None:
        """Return one of these names, if possible of a stored weight; None for activations."""
        return min(self.names(tensor), key=lambda name: (name not in self.stored, name), default=None)

    def operation(self, kind: Kind, weight: Tensor, **size: Any) -> Operation:
        """Return an operation of the running module."""
        name = self.name(weight)
        layer = self.layer if name is None or "." not in name else name.rpartition(".")[0]
        return Operation(layer=layer, kind=kind, weight=name, stored=name in self.stored, **size)

    def _count(self, operations: Sequence[tuple[Operation, set[str]]]) -> None:
        for operation, names in operations:
            self.trace.operations.append(operation)
            self.read |= names
            if operation.kind != "lookup" and not in_convention(self.modules[-1][1]):
                self.trace.paper_macs = None

    def _remember(self, tensor: Tensor, names: set[str]) -> None:
        self._kept.append(tensor)
        self._names.setdefault(_key(tensor), set()).update(names)


Counted = list[tuple[Operation, set[str]]]


def _key(tensor: Tensor) -> int:
    """Return the address of a tensor's storage. Views share it."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(output: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor, and the inner tensors of another quantizer's tensor."""
    yield tensor
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))


def _convolution(recorder: Recorder, args: tuple[Any, ...], output: Tensor) -> Counted:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args
    axes, kernel = x.dim() - 2, tuple(weight.shape[2:])
    window = Window(
        channels=(x.shape[1] // groups, output.shape[1] // groups), input=tuple(x.shape[2:]),
        output=tuple(output.shape[2:]), kernel=kernel, stride=_each(stride, axes), padding=_each(padding, axes),
        dilation=_each(dilation, axes), images=len(x),
    )  # fmt: skip
    incoming, outgoing = window.channels
    size = {"rows": math.prod(window.output), "inner": incoming * math.prod(kernel), "columns": outgoing}
    if transposed:
        size = {"rows": math.prod(window.input), "inner": incoming, "columns": outgoing * math.prod(kernel)}
    size["rows"] *= len(x)
    kind: Kind = "transposed convolution" if transposed else "convolution"
    return [(recorder.operation(kind, weight, **size, groups=groups, window=window), recorder.names(weight))]


def _each(value: Sequence[int], axes: int) -> tuple[int, ...]:
    return tuple(value) * axes if len(value) == 1 else tuple(value)


def _product(recorder: Recorder, left: Tensor, right: Tensor, groups: int = 1) -> Counted:
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    names = recorder.names(left) | recorder.names(right)
    if recorder.name(left) is not None and recorder.name(right) is None:
        left, right, rows, columns = right, left, columns, rows  # (A B)' = B' A': weights become the right-hand matrix
    return [(recorder.operation("product", right, rows=rows, inner=inner, columns=columns, groups=groups), names)]


def _vector_product(recorder: Recorder, matrix: Tensor, vector: Tensor) -> Counted:
    return _product(recorder, vector[None], matrix.T)


def _lookup(recorder: Recorder, args: tuple[Any, ...], output: Any) -> Counted:
    table, places = args[:2]
    one = recorder.operation("lookup", table, rows=places.numel(), inner=1, columns=table.shape[-1])
    return [(one, recorder.names(table))]


def _each_word_once(recorder: Recorder, args: tuple[Any, ...]) -> Counted:
    read = [one for one in args[:2] if isinstance(one, Tensor) and recorder.name(one) in recorder.stored]
    return [
        (recorder.operation("lookup", one, rows=1, inner=1, columns=one.numel()), recorder.names(one)) for one in read
    ]


def _recurrent(recorder: Recorder, args: tuple[Any, ...], output: Any) -> Counted:
    x, inputs, states = args[:3]  # x is (T, N, features): one product for all steps, then one per step
    size = {"rows": len(x) * x.shape[1], "inner": x.shape[2], "columns": len(inputs)}
    step = {"rows": x.shape[1], "inner": states.shape[1], "columns": len(states), "groups": len(x)}
    return [
        (recorder.operation("product", inputs, **size), recorder.names(inputs)),
        (recorder.operation("product", states, **step), recorder.names(states)),
    ]


# These always count: even a product of weights alone is computed in every pass.
_PRODUCTS: dict[str, Callable[[Recorder, tuple[Any, ...], Any], Counted]] = {
    "aten::convolution": _convolution,
    **{f"aten::{name}": lambda recorder, args, _: _product(recorder, args[0], args[1]) for name in ("mm", "_int_mm")},
    **{
        f"aten::{name}": lambda recorder, args, _: _product(recorder, args[1], args[2])
        for name in ("addmm", "addmm_", "_addmm_activation")
    },
    "aten::bmm": lambda recorder, args, _: _product(recorder, args[0], args[1], len(args[0])),
    **{
        f"aten::{name}": lambda recorder, args, _: _product(recorder, args[1], args[2], len(args[1]))
        for name in ("baddbmm", "baddbmm_", "addbmm", "addbmm_")
    },
    "aten::mv": lambda recorder, args, _: _vector_product(recorder, args[0], args[1]),
    **{
        f"aten::{name}": lambda recorder, args, _: _vector_product(recorder, args[1], args[2])
        for name in ("addmv", "addmv_")
    },
    **{
        f"aten::{name}": lambda recorder, args, _: _product(recorder, args[0][None], args[1][:, None])
        for name in ("dot", "vdot")
    },
    "aten::_weight_int8pack_mm": lambda recorder, args, _: _product(recorder, args[0], args[1].T),
    "aten::embedding": _lookup,
    "aten::_embedding_bag": _lookup,
    "aten::_embedding_bag_forward_only": _lookup,
    "aten::mkldnn_rnn_layer": _recurrent,
}
_ELEMENTWISE = {f"aten::{name}{end}" for name in ("add", "sub", "rsub", "mul", "div") for end in ("", "_")}
# Operations that multiply but are not counted. They are reported even if they read no weight.
_HEAVY = tuple(
    f"aten::{name}"
    for name in (
        "_cdist", "_cudnn_rnn", "_efficient_attention", "_fft", "_flash_attention", "_linalg", "_scaled_dot",
        "_scaled_mm", "_thnn", "_trilinear", "linalg", "miopen", "quantized_",
    )
)  # fmt: skip
