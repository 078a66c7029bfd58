"""What a memory stores of a model, and what the model computes when it reads that through the cells of a chip."""

from neuralfuse.memory.activations import Activations
from neuralfuse.memory.deployed import Deployed, Perturbed, deploy
from neuralfuse.memory.readout import READOUTS, Plain, Readout, Secded, ZeroFaultyWords
from neuralfuse.memory.weights import Reading, WeightMemory
from neuralfuse.memory.workers import side_by_side

__all__ = [
    "READOUTS",
    "Activations",
    "Deployed",
    "Perturbed",
    "Plain",
    "Reading",
    "Readout",
    "Secded",
    "WeightMemory",
    "ZeroFaultyWords",
    "deploy",
    "side_by_side",
]
