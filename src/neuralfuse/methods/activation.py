"""Protection by activations: layer outputs stay within their range without bit errors. No retraining."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuralfuse.memory import Deployed
from neuralfuse.methods.base import (
    Access,
    Method,
    Preparation,
    Protected,
    TrainingContext,
    calibration_inputs,
    check_option,
)


@dataclass(frozen=True)
class ClippedActivations(Method):
    """Every layer's output is clipped to its range in the model without bit errors.

    The layers are the BatchNorms. Without any, they are all layers with stored weights but the last.

    Attributes:
        images: Maximum number of validation images from which the ranges are found.
    Source:
        Chen, Li, Pattabiraman: A Low-cost Fault Corrector for Deep Neural Networks through Range Restriction (Ranger),
        DSN 2021.
    """

    name: ClassVar[str] = "clip-activations"
    needs: ClassVar[tuple[Access, ...]] = ("activations",)
    prepares_for: ClassVar[Preparation] = "nothing"
    images: int = 1000

    def __post_init__(self) -> None:
        check_option("images", self.images, 1)

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        ranges = activation_ranges(protected.deployed, calibration_inputs(protected, context, self.images))
        module = copy.deepcopy(protected.model.module)
        for name, (low, high) in ranges.items():
            module.get_submodule(name).register_forward_hook(_Clip(low, high))
        return protected.holding(module, fold=False)


def activation_ranges(deployed: Deployed, inputs: Tensor, batch: int = 100) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest output of each layer without bit errors, by the layer's name."""
    clean = deployed.holding()
    found: dict[str, tuple[float, float]] = {}
    for name, layer in _layers(clean, deployed):
        found[name] = (float("inf"), float("-inf"))
        layer.register_forward_hook(_Watch(found, name))
    with torch.inference_mode():
        for part in torch.split(inputs, batch):
            clean(part)
    return found


def _layers(module: nn.Module, deployed: Deployed) -> Iterator[tuple[str, nn.Module]]:
    norms = [name for name, one in module.named_modules() if isinstance(one, _BatchNorm)]
    stored = [one.parameter.rpartition(".")[0] for one in deployed.memory.stored]
    for name in norms or stored[:-1]:
        yield name, module.get_submodule(name)


@dataclass(frozen=True)
class _Watch:
    found: dict[str, tuple[float, float]]
    name: str

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        low, high = self.found[self.name]
        self.found[self.name] = (min(low, float(output.min())), max(high, float(output.max())))


@dataclass(frozen=True)
class _Clip:
    low: float
    high: float

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.clamp(self.low, self.high)
