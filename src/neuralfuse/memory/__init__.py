"""Which cells hold which bits, which cells fail, and what a model computes when its weights are read through them."""

from neuralfuse.memory.chip import Chip, evaluation_chips, published_chips, training_chip, validation_chips
from neuralfuse.memory.deployed import Deployed, Perturbed, deploy
from neuralfuse.memory.faults import FAULT_MODELS, FaultModel, FaultyCells, Flip, IndependentCells, Stuck, fault_model
from neuralfuse.memory.layout import Layout, Region
from neuralfuse.memory.reference import Reference
from neuralfuse.memory.weights import Reading, WeightMemory

__all__ = [
    "FAULT_MODELS",
    "Chip",
    "Deployed",
    "FaultModel",
    "FaultyCells",
    "Flip",
    "IndependentCells",
    "Layout",
    "Perturbed",
    "Reading",
    "Reference",
    "Region",
    "Stuck",
    "WeightMemory",
    "deploy",
    "evaluation_chips",
    "fault_model",
    "published_chips",
    "training_chip",
    "validation_chips",
]
