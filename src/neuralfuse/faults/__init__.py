"""Fault models: which cells of a memory fail, on which chip, at which voltage, and what a faulty cell reads.

A new fault model subclasses `FaultModel`, `IndependentCells` (each cell fails independently) or `ArrayFaults` (faults
have a place in rows and columns). It implements one method and is entered in `FAULT_MODELS`.
"""

from neuralfuse.faults.array_faults import ArrayFaults
from neuralfuse.faults.arrays import WORD_LAYOUTS, Array, WordLayout
from neuralfuse.faults.base import (
    FAULT_MODELS,
    Chip,
    FaultModel,
    fault_model,
    from_config,
    planning_chips,
    published_chips,
    training_chip,
    validation_chips,
)
from neuralfuse.faults.behaviour import FaultyCells
from neuralfuse.faults.cells import Asymmetric, Flip, IndependentCells, Stuck
from neuralfuse.faults.compose import BitRates, Combined, OneChip, Transient
from neuralfuse.faults.correlated import Clusters, Lines
from neuralfuse.faults.layout import Layout, Region
from neuralfuse.faults.maps import FaultMap, import_map, synthetic_map
from neuralfuse.faults.measured import PROFILES, Measured, Synthetic
from neuralfuse.faults.reference import Reference
from neuralfuse.faults.saved import Saved, load_chip, save_chip
from neuralfuse.faults.voltage import VoltageCurve, VoltagePoint, default_curve

__all__ = [
    "FAULT_MODELS",
    "PROFILES",
    "WORD_LAYOUTS",
    "Array",
    "ArrayFaults",
    "Asymmetric",
    "BitRates",
    "Chip",
    "Clusters",
    "Combined",
    "FaultMap",
    "FaultModel",
    "FaultyCells",
    "Flip",
    "IndependentCells",
    "Layout",
    "Lines",
    "Measured",
    "OneChip",
    "Reference",
    "Region",
    "Saved",
    "Stuck",
    "Synthetic",
    "Transient",
    "VoltageCurve",
    "VoltagePoint",
    "WordLayout",
    "default_curve",
    "fault_model",
    "from_config",
    "import_map",
    "load_chip",
    "planning_chips",
    "published_chips",
    "save_chip",
    "synthetic_map",
    "training_chip",
    "validation_chips",
]
