"""Make neural networks survive low-voltage memory.

Quantize a classifier's weights into a simulated memory (`deploy`), read them through chips whose cells fail (`Chip`,
`fault_model`), train NeuralFuse against many of them (`train_fuse`), and measure what it recovers (`evaluate`).
Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralfuse.config import EopmConfig, QatConfig, base_recipe
    from neuralfuse.data import DataSet, Split, load_data
    from neuralfuse.errors import NeuralFuseError
    from neuralfuse.evaluation import Evaluation, evaluate
    from neuralfuse.faults import (
        Chip,
        FaultMap,
        FaultModel,
        Flip,
        Reference,
        Stuck,
        VoltageCurve,
        fault_model,
        load_chip,
        published_chips,
    )
    from neuralfuse.fuse import NeuralFuse
    from neuralfuse.memory import Deployed, WeightMemory, deploy
    from neuralfuse.nets import BaseModel, base_model, generator, load_base, save_base
    from neuralfuse.quant import Layers, Scheme, fake_quantize
    from neuralfuse.ranges import InputRange
    from neuralfuse.train import train_base, train_fuse

__version__ = _version("neuralfuse")

_ROOM = {
    "config": ("EopmConfig", "QatConfig", "base_recipe"),
    "data": ("DataSet", "Split", "load_data"),
    "errors": ("NeuralFuseError",),
    "evaluation": ("Evaluation", "evaluate"),
    "fuse": ("NeuralFuse",),
    "faults": (
        "Chip", "FaultMap", "FaultModel", "Flip", "Reference", "Stuck", "VoltageCurve",
        "fault_model", "load_chip", "published_chips",
    ),
    "memory": ("Deployed", "WeightMemory", "deploy"),
    "nets": ("BaseModel", "base_model", "generator", "load_base", "save_base"),
    "quant": ("Layers", "Scheme", "fake_quantize"),
    "ranges": ("InputRange",),
    "train": ("train_base", "train_fuse"),
}  # fmt: skip
_HOME = {name: room for room, names in _ROOM.items() for name in names}

__all__ = [
    "BaseModel",
    "Chip",
    "DataSet",
    "Deployed",
    "EopmConfig",
    "Evaluation",
    "FaultMap",
    "FaultModel",
    "Flip",
    "InputRange",
    "Layers",
    "NeuralFuse",
    "NeuralFuseError",
    "QatConfig",
    "Reference",
    "Scheme",
    "Split",
    "Stuck",
    "VoltageCurve",
    "WeightMemory",
    "base_model",
    "base_recipe",
    "deploy",
    "evaluate",
    "fake_quantize",
    "fault_model",
    "generator",
    "load_base",
    "load_chip",
    "load_data",
    "published_chips",
    "save_base",
    "train_base",
    "train_fuse",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"neuralfuse.{_HOME[name]}"), name)
    raise AttributeError(f"module 'neuralfuse' has no attribute {name!r}")
