"""The paper's figures of merit: energy saving by accesses or by MACs, and recovery per parameter."""

from __future__ import annotations

from neuralfuse.errors import require


def energy_saving(weight_energy: float, generator_accesses: float, base_accesses: float) -> float:
    """Return the weight-memory energy saved, in percent; negative if NeuralFuse costs more than the voltage saves.

    The generator's memory is at the nominal voltage.

    Args:
        weight_energy: Energy per access at the low voltage, relative to the nominal voltage.
        generator_accesses: Accesses of the generator per image; 0 without a generator.
        base_accesses: Accesses of the base model per image.
    Source:
        NeuralFuse (arXiv 2306.16869), Eq. 6.
    """
    return _saving(weight_energy, generator_accesses, base_accesses)


def mac_saving(weight_energy: float, generator_macs: float, base_macs: float) -> float:
    """Return the energy saved, in percent, with the generator's share measured by MACs.

    Source:
        NeuralFuse (arXiv 2306.16869), Eq. 7.
    """
    return _saving(weight_energy, generator_macs, base_macs)


def efficiency_ratio(rp: float, parameters: int) -> float:
    """Return the recovery in percentage points per million parameters of the generator.

    Source:
        NeuralFuse (arXiv 2306.16869), Table 3.
    """
    require(parameters >= 1, f"the generator must have at least one parameter: got {parameters}.")
    return rp / (parameters / 1e6)


def _saving(weight_energy: float, generator: float, base: float) -> float:
    require(base > 0, f"the base model's accesses or MACs must be positive: got {base}.")
    return 100 * (1 - weight_energy - generator / base)
