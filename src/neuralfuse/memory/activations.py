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

from neuralfuse.errors import require
from neuralfuse.faults import Chip, FaultyCells, Layout
from neuralfuse.memory.readout import changed_cells, changed_words
from neuralfuse.quant import Scheme
from neuralfuse.quant.layers import DEFAULT_TYPES


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Which activations are stored, and how.

    One sample's output of a module lies in a buffer as words in the order of its elements; the buffer is used again for
    each sample, so a permanent fault hits the same element of all of them. The scale is each sample's own largest
    value.

    Args:
        scheme: How they are coded.
        include: Name patterns of the modules whose outputs are stored, e.g. ``"relu*"``; None for every convolution and
            linear layer.
        exclude: Name patterns of modules to leave out.
        inputs: Whether the model's input is stored too.
    """

    scheme: Scheme = field(default_factory=Scheme)
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    inputs: bool = True

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the chosen modules by name.

        Raises:
            ConfigError: none is chosen, and neither is the input.
        """
        chosen = {name: module for name, module in model.named_modules() if name and self._wants(name, module)}
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
            return isinstance(module, DEFAULT_TYPES)
        return any(fnmatchcase(name, pattern) for pattern in self.include)


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
            return self.read(f"activation.{name}", output, read) if isinstance(output, Tensor) else output

        handles = [module.register_forward_hook(partial(hook, name)) for name, module in modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def read(self, name: str, x: Tensor, read: int) -> Tensor:
        """Return activations (N, ...) as the memory gives them back; the gradient passes straight through.

        NaN is stored as 0.
        """
        samples = (
            x.detach().float().nan_to_num().flatten(1) if x.dim() > 1 else x.detach().float().nan_to_num()[:, None]
        )
        coded = self._scheme.encode(samples, 0)
        codes = coded.codes
        if self.chip is not None:
            zeros, ones = self._masks_of(name, codes.shape[1], codes, read)
            codes = self._scheme.signed((codes & ones) | (~codes & zeros))
        values = self._scheme.decode(codes, coded.scale, coded.center).view_as(x).to(x.dtype)
        return values + (x - x.detach()) if x.requires_grad and torch.is_grad_enabled() else values

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


def _read(words: Tensor, faults: FaultyCells, bits: int) -> tuple[Tensor, Tensor]:
    return changed_words(words, changed_cells(words, faults, bits), bits)
