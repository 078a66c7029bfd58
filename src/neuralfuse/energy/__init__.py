"""The energy that a voltage saves: accesses and MACs of a model, their energies, and the paper's figures."""

from neuralfuse.energy.arrays import Accesses, SystolicArray
from neuralfuse.energy.counts import GENERATOR_LAYERS, Counts, count
from neuralfuse.energy.figures import efficiency_ratio, energy_saving, mac_saving
from neuralfuse.energy.operations import Operation, Trace
from neuralfuse.energy.report import OperatingPoint, energy_record, latency
from neuralfuse.energy.technology import TECHNOLOGIES, Joules, Supply, Technology
from neuralfuse.energy.trace import trace

__all__ = [
    "GENERATOR_LAYERS",
    "TECHNOLOGIES",
    "Accesses",
    "Counts",
    "Joules",
    "OperatingPoint",
    "Operation",
    "Supply",
    "SystolicArray",
    "Technology",
    "Trace",
    "count",
    "efficiency_ratio",
    "energy_record",
    "energy_saving",
    "latency",
    "mac_saving",
    "trace",
]
