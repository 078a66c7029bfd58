"""The paper's figures of merit: energy saving, by accesses and by MACs, and recovery for each parameter."""

from __future__ import annotations

from neuralfuse.errors import require


def energy_saving(weight_energy: float, generator_accesses: float, base_accesses: float) -> float:
    """Return the weight-memory energy saved, in percent; negative where NeuralFuse costs more than the voltage saves.

    The generator's own accesses are at the nominal voltage.

    Args:
        weight_energy: Energy of an access at the low voltage, relative to the nominal one.
        generator_accesses: Accesses of the generator for one image; 0 without one.
        base_accesses: Accesses of the base model for one image.
    Source:
        NeuralFuse (arXiv 2306.16869), Eq. 6.
    """
    return _saving(weight_energy, generator_accesses, base_accesses)


def mac_saving(weight_energy: float, generator_macs: float, base_macs: float) -> float:
    """Return the energy saved, in percent, where the generator's share is that of its MACs.

    Source:
        NeuralFuse (arXiv 2306.16869), Eq. 7.
    """
    return _saving(weight_energy, generator_macs, base_macs)


def efficiency_ratio(rp: float, parameters: int) -> float:
    """Return the recovery in percentage points for each million of the generator's parameters.

    Source:
        NeuralFuse (arXiv 2306.16869), Table 3.
    """
    require(parameters >= 1, f"a generator must have parameters: got {parameters}.")
    return rp / (parameters / 1e6)


def _saving(weight_energy: float, generator: float, base: float) -> float:
    require(base > 0, f"the base model must cost something: got {base}.")
    return 100 * (1 - weight_energy - generator / base)
