"""A model's weights in a memory, and the model's outputs when it reads them through a faulty chip."""

from neuralfuse.memory.activations import Activations
from neuralfuse.memory.deployed import Deployed, Perturbed, check_output, deploy
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
    "check_output",
    "deploy",
    "side_by_side",
]
