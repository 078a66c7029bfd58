"""Activations and inputs in a memory: quantized at a layer's output, then read through faulty cells."""

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

    Each module has a buffer for the output of one sample, with one word per element. All samples use the same buffer,
    so a permanent fault hits the same element of each. The quantization scale of a sample follows its largest value.

    Args:
        scheme: Quantization scheme of the activations.
        include: Name patterns of the modules whose outputs are stored, e.g. ``("relu*",)``. None for all convolutions
            and linear layers.
        exclude: Name patterns of modules to leave out.
        inputs: Whether the model's input is stored too.
    """

    scheme: Scheme = field(default_factory=Scheme)
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    inputs: bool = True

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            text = getattr(self, name)
            require(not isinstance(text, str), f"{name} must be a tuple of patterns: got the string {text!r}.")

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the chosen modules by name.

        Raises:
            ConfigError: no module is chosen, and the input is not stored.
        """
        chosen = {name: module for name, module in _plain_modules(model) if self._wants(name, module)}
        require(
            bool(chosen) or self.inputs,
            f"activations must be stored somewhere: include={self.include}, exclude={self.exclude} match no module.",
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
    """Yield each submodule's name without wrapper prefixes, and the submodule. Chips are keyed by these names."""
    inner = model
    while [name for name, _ in inner.named_children()] in (["module"], ["_orig_mod"]):
        inner = next(inner.children())
    for name, module in inner.named_modules():
        if name:
            yield name.replace("_orig_mod.", ""), module


class ActivationMemory:
    """The activation memory of one model, on one chip or without faults.

    Args:
        choice: Which activations are stored.
        chip: The chip. None for a memory without faults.
    """

    def __init__(self, choice: Activations, chip: Chip | None = None) -> None:
        self.choice, self.chip = choice, chip
        self._scheme = replace(choice.scheme, granularity="channel")  # samples are the channel axis: one scale each
        self._masks: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    def input(self, x: Tensor, read: int) -> Tensor:
        """Return the model's input as the memory reads it back."""
        return self.read("input", x, read) if self.choice.inputs else x

    @contextmanager
    def attached(self, modules: dict[str, nn.Module], read: int) -> Iterator[None]:
        """Within the context, replace the outputs of these modules by what the memory reads back."""

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
        """Return activations (N, ...) as the memory reads them back. The gradient passes straight through.

        NaN is stored as 0. Infinity is stored as the largest finite value of its sample.
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
        """Return what a buffer reads if all stored bits are 0, and if all are 1. Together they determine any read."""
        chip = self.chip
        if chip is None:
            raise AssertionError("a memory without faults has no masks")
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
    """Return other values, but pass the gradient through unchanged. Infinities in ``x`` do not matter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


def _read(words: Tensor, faults: FaultyCells, bits: int) -> tuple[Tensor, Tensor]:
    return changed_words(words, changed_cells(words, faults, bits), bits)
