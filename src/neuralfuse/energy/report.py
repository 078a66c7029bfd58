"""The energy record: counts of base model and generator, the paper's figures, joules, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuralfuse.energy.arrays import SystolicArray
from neuralfuse.energy.counts import Counts
from neuralfuse.energy.figures import efficiency_ratio, energy_saving, mac_saving
from neuralfuse.energy.technology import Joules, Supply, Technology
from neuralfuse.errors import require
from neuralfuse.faults import VoltageCurve

SCHEMA = "neuralfuse/energy/1"


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A supply voltage of the weight memory, with its bit-error rate and energy.

    Attributes:
        voltage: Voltage in the curve's unit.
        ber: Rate of faulty cells at this voltage.
        weight_energy: Energy per access, relative to the highest voltage.
        is_point: Whether the energy is a measured or published point, not an interpolation by a law or a model.
        curve: The curve that rate and energy come from.
    """

    voltage: float
    ber: float
    weight_energy: float
    is_point: bool
    curve: VoltageCurve

    @staticmethod
    def at(curve: VoltageCurve, *, voltage: float | None = None, ber: float | None = None) -> OperatingPoint:
        """Return the point at a voltage, or at the highest voltage with this rate of faulty cells."""
        require(voltage is None or ber is None, "an operating point must have a voltage or a rate: got both.")
        if voltage is None:
            voltage = curve.voltage(ber or 0.0)
        return OperatingPoint(
            voltage=voltage, ber=curve.ber(voltage) if ber is None else ber, weight_energy=curve.energy(voltage),
            is_point=curve.is_point(voltage), curve=curve,
        )  # fmt: skip

    def to_config(self) -> dict[str, Any]:
        """Return the point as JSON."""
        return {**asdict(self), "curve": self.curve.to_config()}


def energy_record(
    base: tuple[str, Counts],
    generator: tuple[str, Counts] | None = None,
    *,
    point: OperatingPoint | None = None,
    array: SystolicArray,
    technology: Technology,
    kib: float,
    bits: int = 8,
    seconds: float = 0.0,
    recovery: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the energy record.

    Args:
        base: Name and counts of the base model.
        generator: Name and counts of the generator, at the nominal voltage; None without a generator.
        point: Operating point of the base model's weight memory; None for the nominal voltage alone.
        array: Array that the accesses were counted for.
        technology: Energies of accesses and MACs.
        kib: Capacity of a memory bank in KiB.
        bits: Width of a word in bits.
        seconds: Duration of an inference, for leakage.
        recovery: Evaluation record of base model and generator, for the efficiency ratio.
    """
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "base": {"name": base[0], **base[1].to_config()},
        "generator": None if generator is None else {"name": generator[0], **generator[1].to_config()},
        "array": asdict(array),
        "technology": technology.to_config(),
        "bits": bits,
        "bank_kib": kib,
        "inference_seconds": seconds,
        "operating_point": None if point is None else point.to_config(),
        "efficiency_ratio": None,
    }
    cost = technology.inference(base[1], bits=bits, kib=kib, supply=Supply(seconds=seconds))
    record["joules"] = {"nominal": cost.to_config()}
    if generator is not None and recovery is not None:
        ratio = efficiency_ratio(recovery["rp"], generator[1].parameters)
        record["efficiency_ratio"] = {"value": ratio, "ber": recovery["ber"], "ber_kind": recovery["ber_kind"]}
    if point is None:
        return record
    supply = Supply(weights=point.weight_energy, voltage=point.voltage / point.curve.range[1], seconds=seconds)
    low = technology.inference(base[1], bits=bits, kib=kib, supply=supply)
    record["joules"]["low"] = low.to_config()
    added, extra = Joules(), Counts.none()
    if generator is not None:
        extra = generator[1]
        added = technology.inference(extra, bits=bits, kib=kib, supply=Supply(seconds=seconds))
        record["joules"]["generator"] = added.to_config()
    record["saving"] = _saving(base[1], extra, point.weight_energy, cost, low, added)
    return record


def _saving(
    base: Counts, extra: Counts, weight_energy: float, nominal: Joules, low: Joules, added: Joules
) -> dict[str, float | bool | None]:
    """Return the savings in percent; None if uncounted operations could make a saving smaller."""
    known, macs = not extra.unknown, (extra.paper_macs, base.paper_macs)
    by_macs = known and not base.unknown and macs[0] is not None and macs[1]
    return {
        "at_least": bool(base.unknown),
        "paper": energy_saving(weight_energy, extra.paper_accesses, base.paper_accesses) if known else None,
        "paper_macs": mac_saving(weight_energy, macs[0] or 0, macs[1] or 0) if by_macs else None,
        "weight_memory": 100 * (1 - (low.weights + added.weights) / nominal.weights) if known else None,
        "inference": 100 * (1 - (low.total + added.total) / nominal.total) if known and not base.unknown else None,
    }


def latency(base: nn.Module, fuse: nn.Module | None, image: Tensor, repeats: int = 30) -> dict[str, float]:
    """Return the median seconds of one inference, without and with NeuralFuse, measured alternately.

    Args:
        base: The base model.
        fuse: The NeuralFuse in front of it; None to measure the base model alone.
        image: Images (N, C, H, W) on the models' device.
        repeats: Number of measurements.
    """
    ways: dict[str, list[nn.Module]] = {"base": [base]} | ({} if fuse is None else {"with_neuralfuse": [fuse, base]})
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for turn in range(repeats + 3):
            for name, modules in ways.items():
                _wait(image.device)
                start = time.perf_counter()
                x = image
                for module in modules:
                    x = module(x)
                _wait(image.device)
                if turn >= 3:  # warm-up: the first runs choose kernels
                    taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
