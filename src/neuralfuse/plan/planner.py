"""The cheapest way to run a model that is accurate enough, found by measuring every one."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from neuralfuse.data import Split
from neuralfuse.energy import GENERATOR_LAYERS, Counts, SystolicArray, Technology, count
from neuralfuse.errors import require
from neuralfuse.evaluation import Target, mean
from neuralfuse.faults import BitRates, Chip, FaultModel, VoltageCurve, planning_chips
from neuralfuse.fuse import NeuralFuse, check_same_range
from neuralfuse.memory import Deployed, side_by_side
from neuralfuse.scoring import accuracy, plain_inputs, transform

Kind = Literal["neuralfuse", "unprotected", "protected bits", "smaller model"]
By = Literal["weights", "inference"]
Known = dict[str, list[list[float]]]  # by what was measured: for each set of inputs, one accuracy a chip


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a plan is made for.

    Attributes:
        curve: Rates and energies by voltage.
        array: For the accesses.
        technology: What they cost.
        kib: Capacity of a bank of memory.
    """

    curve: VoltageCurve
    array: SystolicArray
    technology: Technology
    kib: float

    def to_config(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "curve": self.curve.to_config(),
            "array": asdict(self.array),
            "technology": self.technology.to_config(),
            "bank_kib": self.kib,
        }


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run: a voltage and a protection, what it costs and what was measured.

    Attributes:
        name: Of the protection, or of the smaller model.
        kind: What it is.
        voltage: Of the memory of the base model's weights, in the curve's unit.
        ber: Rate of faulty cells there.
        weights: Energy of the memory of the weights, the generator's included, over the base model's at the highest
            voltage.
        inference: Energy of all (weights, inputs, outputs, arithmetic), over the same.
        accuracies: In percent, one a chip; a single one where no cell fails.
        protected: Most significant bits whose cells do not fail, for protected bits.
    """

    name: str
    kind: Kind
    voltage: float
    ber: float
    weights: float
    inference: float
    accuracies: tuple[float, ...]
    protected: int = 0

    @property
    def exact(self) -> bool:
        """Whether no cell fails, so that there is nothing to draw."""
        return self.ber == 0

    def energy(self, by: By) -> float:
        """Return the relative energy of the memory of the weights, or of the whole inference."""
        return self.weights if by == "weights" else self.inference

    def to_config(self, target: Target) -> dict[str, Any]:
        """Return it as JSON, with what its chips say about all chips."""
        found = {**asdict(self), **target.reached_by(self.accuracies, exact=self.exact)}
        return found | {"accuracies": list(self.accuracies)}


class Planner:
    """Measures ways to run a base model, one voltage after the other, and knows what each of them costs.

    Args:
        base: The deployed base model.
        split: Images to choose by.
        faults_at: The fault model at a voltage.
        hardware: What it is planned for.
        target: What is asked; chips are measured no further once no way can reach it.
        chips: How many chips at most; by default as many as the target needs.
        known: What an interrupted run had measured.
        keep: Told of all that is measured, each time that there is more.
    Raises:
        ConfigError: a layer of the base model cannot be counted.
    """

    def __init__(
        self,
        base: Deployed,
        split: Split,
        *,
        faults_at: Callable[[float], FaultModel],
        hardware: Hardware,
        target: Target,
        chips: int | None = None,
        known: Known | None = None,
        keep: Callable[[Known], None] = lambda known: None,
    ) -> None:
        if chips is not None and (target.share is not None or chips < 2):
            least = 2 if target.share is None else target.chips
            require(chips >= least, f"chips must be at least {least} to show {target}: got {chips}.")
        self.base, self.split, self.faults_at = base, split, faults_at
        self.hardware, self.target, self.chips = hardware, target, chips or target.chips
        self.known, self.keep = dict(known or {}), keep
        self.counts = self._count(base.model)
        self.plain = plain_inputs(split, base.input_range)

    def at(self, voltage: float, fuses: Mapping[str, NeuralFuse], protect: Sequence[int] = ()) -> list[Option]:
        """Return the ways to run at one voltage: unprotected, behind each NeuralFuse, and with protected bits.

        Args:
            voltage: Of the memory of the weights.
            fuses: Trained modules by name, in eval mode, on the base model's device; their memory keeps the highest
                voltage.
            protect: Numbers of most significant bits whose cells keep it, without NeuralFuse.
        """
        curve, faults, bits = self.hardware.curve, self.faults_at(voltage), self.base.memory.layout.bits
        ber, energy = curve.ber(voltage), curve.energy(voltage)
        for name, fuse in fuses.items():
            require(not fuse.training, f"NeuralFuse {name} must be in eval mode: call eval() first.")
            check_same_range(fuse, self.base)
        inputs = [self.plain, *(transform(fuse, self.plain) for fuse in fuses.values())]
        alone, *fused = self._measured(repr(voltage), self.base, inputs, faults)
        found = [self._option("no protection", "unprotected", voltage, energy, alone)]
        for (name, fuse), accuracies in zip(fuses.items(), fused, strict=True):
            found.append(self._option(name, "neuralfuse", voltage, energy, accuracies, fuse=fuse))
        for msbs in protect if ber > 0 else ():
            hardened = BitRates.protecting(faults, msbs=msbs, bits=bits)
            (accuracies,) = self._measured(f"{voltage!r}, {msbs} bits", self.base, inputs[:1], hardened)
            mixed = (msbs + (bits - msbs) * energy) / bits
            name = f"{msbs} bit{'s' * (msbs > 1)} protected"
            made = self._option(name, "protected bits", voltage, mixed, accuracies)
            found.append(replace(made, protected=msbs))
        return found

    def smaller(self, name: str, model: Deployed) -> list[Option]:
        """Return a smaller base model without errors: at the highest voltage, and at the lowest that makes none."""
        curve, found = self.hardware.curve, list[Option]()
        inputs = [plain_inputs(self.split, model.input_range)]
        highest = curve.range[1]
        for voltage in sorted({highest, highest if curve.vmin is None else curve.vmin}, reverse=True):
            (accuracies,) = self._measured(f"{name} without errors", model, inputs, self.faults_at(voltage))
            energy = curve.energy(voltage)
            found.append(self._option(name, "smaller model", voltage, energy, accuracies, run=model))
        return found

    def _measured(self, key: str, model: Deployed, inputs: Sequence[Tensor], faults: FaultModel) -> list[list[float]]:
        if key not in self.known:
            self.known[key] = self._accuracies(model, inputs, faults)
            self.keep(self.known)
        return self.known[key]

    def _accuracies(self, model: Deployed, inputs: Sequence[Tensor], faults: FaultModel) -> list[list[float]]:
        """Return, for each set of inputs, the accuracy on each chip; one without errors where no cell fails."""
        labels = self.split.labels
        if faults.cell_rate == 0:
            return [[accuracy(model, one, labels)] for one in inputs]

        def measure(chip: Chip) -> list[float]:
            perturbed, values = model.perturbed(chip), []
            for one in inputs:
                perturbed.reads = 0  # transient errors, too, are the same for all of them
                values.append(accuracy(perturbed, one, labels))
            return values

        found: list[list[float]] = [[] for _ in inputs]
        chips = planning_chips(faults, self.chips)
        with closing(side_by_side(measure, chips, model.at_once(inputs[0][:1]))) as results:
            for values in results:
                for own, value in zip(found, values, strict=True):
                    own.append(value)
                if all(self.target.is_lost(own, len(chips)) for own in found):
                    break
        return found

    def _option(
        self,
        name: str,
        kind: Kind,
        voltage: float,
        energy: float,
        accuracies: Sequence[float],
        *,
        run: Deployed | None = None,
        fuse: NeuralFuse | None = None,
    ) -> Option:
        technology, kib, bits = self.hardware.technology, self.hardware.kib, self.base.memory.layout.bits
        nominal = technology.inference(self.counts, bits=bits, kib=kib)
        taken = self.counts if run is None else self._count(run.model)
        parts = [technology.inference(taken, bits=bits, kib=kib, weight_energy=energy)]
        if fuse is not None:
            parts.append(technology.inference(self._count(fuse), bits=bits, kib=kib))
        return Option(
            name=name,
            kind=kind,
            voltage=voltage,
            ber=self.hardware.curve.ber(voltage),
            weights=math.fsum(part.weights for part in parts) / nominal.weights,
            inference=math.fsum(part.total for part in parts) / nominal.total,
            accuracies=tuple(accuracies),
        )

    def _count(self, module: nn.Module) -> Counts:
        made = count(
            module,
            channels=self.split.images.shape[1],
            image_size=(self.split.images.shape[2], self.split.images.shape[3]),
            array=self.hardware.array,
            layers=GENERATOR_LAYERS,
        )
        lost = ", ".join(f"{one.layer} ({one.reason})" for one in made.unknown)
        require(not made.unknown, f"every layer must be counted to plan its energy: {lost} cannot be.")
        return made


def cheapest(
    options: Sequence[Option], target: Target, by: By, *, kinds: Container[Kind] = get_args(Kind)
) -> Option | None:
    """Return the way that reaches the target at the lowest energy; None where none does."""
    fit = [one for one in options if one.kind in kinds and target.is_met(one.accuracies, exact=one.exact)]
    return min(fit, key=lambda one: (one.energy(by), -mean(one.accuracies)), default=None)


def pareto(options: Sequence[Option], by: By) -> list[Option]:
    """Return the ways that no other beats in both energy and mean accuracy, by rising energy."""
    best, front = -math.inf, list[Option]()
    for one in sorted(options, key=lambda one: (one.energy(by), -mean(one.accuracies))):
        if mean(one.accuracies) > best:
            best = mean(one.accuracies)
            front.append(one)
    return front
