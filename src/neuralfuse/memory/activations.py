"""Activations and inputs in a memory of their own: quantized where a layer hands them on, read through faulty cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from neuralfuse.errors import require
from neuralfuse.faults import Chip, FaultyCells, Layout
from neuralfuse.memory.readout import changed_cells, changed_words
from neuralfuse.quant import Scheme


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Which activations are stored, and how.

    One sample's output of a module lies in a buffer as words in the order of its elements; the buffer is used again for
    each sample, so a permanent fault hits the same element of all of them. The scale is each sample's own largest
    value.

    Args:
        scheme: How they are coded.
        include: Name patterns of the modules whose outputs are stored, e.g. ``("relu*",)``; None for every convolution
            and linear layer.
        exclude: Name patterns of modules to leave out.
        inputs: Whether the model's input is stored too.
    """

    scheme: Scheme = field(default_factory=Scheme)
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    inputs: bool = True

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            require(not isinstance(getattr(self, name), str), f"{name} must be a tuple of patterns: got a string.")

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the chosen modules by name.

        Raises:
            ConfigError: none is chosen, and neither is the input.
        """
        chosen = {name: module for name, module in _plain_modules(model) if self._wants(name, module)}
        require(
            bool(chosen) or self.inputs,
            f"activations must be stored somewhere: include={self.include}, exclude={self.exclude} matches no module.",
        )
        return chosen

    def to_config(self) -> dict[str, Any]:
        """Return the choice as JSON."""
        include = None if self.include is None else list(self.include)
        return {
            "scheme": self.scheme.to_config(),
            "include": include,
            "exclude": list(self.exclude),
            "inputs": self.inputs,
        }

    def _wants(self, name: str, module: nn.Module) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self.exclude):
            return False
        if self.include is None:
            return isinstance(module, _ConvNd | nn.Linear)
        return any(fnmatchcase(name, pattern) for pattern in self.include)


def _plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the submodules by the names they have without wrappers; chips are keyed by them."""
    inner = model
    while [name for name, _ in inner.named_children()] in (["module"], ["_orig_mod"]):
        inner = next(inner.children())
    for name, module in inner.named_modules():
        if name:
            yield name.replace("_orig_mod.", ""), module


class ActivationMemory:
    """The activation memory of one model, on one chip or on none.

    Args:
        choice: What is stored.
        chip: The chip; None for a memory without errors.
    """

    def __init__(self, choice: Activations, chip: Chip | None = None) -> None:
        self.choice, self.chip = choice, chip
        self._scheme = replace(choice.scheme, granularity="channel")  # a sample takes the place of a channel
        self._masks: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    def input(self, x: Tensor, read: int) -> Tensor:
        """Return the model's input as read from the memory."""
        return self.read("input", x, read) if self.choice.inputs else x

    @contextmanager
    def attached(self, modules: dict[str, nn.Module], read: int) -> Iterator[None]:
        """Let these modules hand on what is read from the memory, for as long as the context lasts."""

        def hook(name: str, module: nn.Module, arguments: Sequence[Any], output: Any) -> Any:
            require(
                isinstance(output, Tensor) and output.dim() > 0,
                f"activations of {name!r} must be one tensor of samples to be stored: got {type(output).__name__}. "
                "Leave the module out with exclude.",
            )
            return self.read(f"activation.{name}", output, read)

        handles = [module.register_forward_hook(partial(hook, name)) for name, module in modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def read(self, name: str, x: Tensor, read: int) -> Tensor:
        """Return activations (N, ...) as the memory gives them back; the gradient passes straight through.

        NaN is stored as 0, and infinity as the largest value beside it.
        """
        samples = x.detach().float().reshape(len(x), -1)
        largest = samples.abs().where(samples.isfinite(), 0).amax(1, keepdim=True)
        samples = samples.nan_to_num(0.0).clamp(-largest, largest)
        coded = self._scheme.encode(samples, 0)
        codes = coded.codes
        if self.chip is not None:
            zeros, ones = self._masks_of(name, codes.shape[1], codes, read)
            codes = self._scheme.signed((codes & ones) | (~codes & zeros))
        values = self._scheme.decode(codes, coded.scale, coded.center).view_as(x).to(x.dtype)
        read_out: Tensor = _StraightThrough.apply(x, values)
        return read_out

    def _masks_of(self, name: str, words: int, codes: Tensor, read: int) -> tuple[Tensor, Tensor]:
        """Return what a buffer reads where all bits are 0, and where all are 1: together, all there is to know."""
        chip = self.chip
        if chip is None:
            raise AssertionError("a memory without errors has no masks")
        key = (name, words, 0 if chip.faults.permanent is chip.faults else read)
        if key not in self._masks:
            if key[2]:
                self._masks.clear()
            layout = Layout.of([(name, words)], self._scheme.bits)
            faults = chip.faults.cells(layout, chip.seed, codes.device, read=read)
            clear = torch.zeros(words, dtype=codes.dtype, device=codes.device)
            full = clear + ((1 << self._scheme.bits) - 1) if codes.dtype in (torch.uint8, torch.int32) else clear - 1
            masks = [one.index_copy(0, *_read(one, faults, layout.bits)) for one in (clear, full)]
            self._masks[key] = (masks[0], masks[1])
        return self._masks[key]


class _StraightThrough(torch.autograd.Function):
    """Hand on other values, and the gradient as if they were the same; finite whatever was there before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


def _read(words: Tensor, faults: FaultyCells, bits: int) -> tuple[Tensor, Tensor]:
    return changed_words(words, changed_cells(words, faults, bits), bits)
