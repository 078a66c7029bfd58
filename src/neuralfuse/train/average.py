"""An exponential moving average of a module's weights, which is validated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a module's state over the training steps.

    Args:
        module: The module before the first step.
        decay: Share of the average that each step keeps, in [0, 1). The first steps keep less, so that the initial
            weights are soon forgotten. 0 turns the average off.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = _copy(module) if decay else {}

    def update(self, module: nn.Module, step: int) -> None:
        """Update the average with the module's state after a step (counted from 1)."""
        decay = min(self.decay, step / (9 + step))
        with torch.no_grad():
            for name, latest in module.state_dict().items() if self.decay else ():
                own = self.tensors[name]
                if own.is_floating_point():
                    own.lerp_(latest, 1 - decay)
                else:
                    own.copy_(latest)

    @contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Load the average into the module. Restore the latest weights on exit."""
        if not self.decay:
            yield
            return
        latest = _copy(module)
        module.load_state_dict(self.tensors)
        try:
            yield
        finally:
            module.load_state_dict(latest)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
