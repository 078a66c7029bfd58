"""The catalogue of networks with their parameter counts."""

from __future__ import annotations

from typing import Any

import torch

from neuralfuse.nets.base import BASE_MODELS, parameter_count
from neuralfuse.nets.generators import GENERATORS, plugins

SCHEMA = "neuralfuse/models/1"


def catalogue(classes: int = 10, channels: int = 3) -> dict[str, Any]:
    """Return all base models and generators with their parameter counts, as one record. No weight is allocated.

    Of plugins' generators only the names are given: to count them would run their code.
    """
    with torch.device("meta"):
        bases = [
            {
                "name": name,
                "parameters": parameter_count(spec.build(classes=classes, channels=channels)),
                "image_size": spec.image_size,
                "note": spec.note,
            }
            for name, spec in BASE_MODELS.items()
        ]
        generators = [
            {"name": name, "parameters": parameter_count(build(channels, (32, 32)))}
            for name, build in GENERATORS.items()
        ]
    return {
        "schema": SCHEMA,
        "classes": classes,
        "channels": channels,
        "base_models": bases,
        "generators": generators,
        "plugins": [{"name": name, "factory": entry.value} for name, entry in plugins().items()],
    }
