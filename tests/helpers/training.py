"""What a training run does in each step, as a listener sees it."""

from __future__ import annotations

import copy

from torch import nn


class Watching:
    """Remembers the losses and the gradient of each step, and what the module was after it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.losses: list[dict[str, float]] = []
        self.gradients: list[dict[str, object]] = []
        self.after: list[nn.Module] = []

    def stepped(self, step, total, losses):
        """The gradient stays on the parameters until the next step begins."""
        self.losses.append(dict(losses))
        self.gradients.append({name: one.grad.clone() for name, one in self.module.named_parameters()})
        self.after.append(copy.deepcopy(self.module))

    def validated(self, step, metrics):
        pass

    def close(self):
        pass
