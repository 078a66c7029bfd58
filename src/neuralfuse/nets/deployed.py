"""A base model in its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from neuralfuse.memory import Deployed, deploy
from neuralfuse.nets.base import BaseModel
from neuralfuse.quant import Scheme


@dataclass(frozen=True)
class DeployedBase:
    """A base model, and the same model in its memory.

    Attributes:
        model: The base model, with all that is known of it.
        deployed: Its module on stored weights.
    """

    model: BaseModel
    deployed: Deployed

    @staticmethod
    def of(model: BaseModel, device: torch.device | str = "cpu", *, scheme: Scheme | None = None) -> DeployedBase:
        """Store a base model's weights as it was trained for, or by another scheme, on a device."""
        module = model.module.to(device)
        return DeployedBase(
            model, deploy(module, scheme=scheme or model.scheme, input_range=model.input_range)
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The base model's name."""
        return self.model.name

    def to_config(self) -> dict[str, Any]:
        """Return what a result depends on of this model, as JSON."""
        return {"name": self.name, **self.deployed.to_config()}
