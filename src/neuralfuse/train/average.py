"""An exponential moving average of a module's weights, to be validated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of all that a module has been, the latest steps most.

    Args:
        module: As it is before the first step.
        decay: Share of the average that a step leaves, in [0, 1); less over the first steps, so that the start is soon
            forgotten. 0 makes it the module as it is.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = _copy(module) if decay else {}

    def update(self, module: nn.Module, step: int) -> None:
        """Take in the module after a step (counted from 1)."""
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
        """Have the module hold the average for a while."""
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
