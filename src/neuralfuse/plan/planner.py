"""Measurement and energy of every way to run a model, and the choice of the cheapest accurate one."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from neuralfuse.data import Split
from neuralfuse.energy import GENERATOR_LAYERS, Counts, Supply, SystolicArray, Technology, count
from neuralfuse.errors import require
from neuralfuse.evaluation import PartialRecord, Target, mean, measure_chips
from neuralfuse.faults import BitRates, Chip, FaultModel, VoltageCurve, planning_chips
from neuralfuse.fuse import NeuralFuse, check_same_range
from neuralfuse.memory import Deployed
from neuralfuse.quant import Layers
from neuralfuse.scoring import accuracy, plain_inputs, transform

Kind = Literal["neuralfuse", "unprotected", "protected bits", "smaller model"]
By = Literal["weights", "inference"]
MOST_CHIPS = 2500  # as many as `planning_chips` can return
_GENERATOR_BITS = 8  # NeuralFuse is trained for 8-bit weights


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The hardware that a plan is made for.

    Attributes:
        curve: Rates and energies by voltage.
        array: The array of multipliers, which determines the memory accesses.
        technology: Energy per access and operation.
        kib: Capacity of a memory bank, in KiB.
        seconds: Time of an inference, in seconds; needed if the technology leaks.
    """

    curve: VoltageCurve
    array: SystolicArray
    technology: Technology
    kib: float
    seconds: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.curve.vmin is not None,
            "a voltage curve must reach a voltage without errors to plan with: otherwise protected cells fail too.",
        )

    def to_config(self) -> dict[str, Any]:
        """Return the hardware as JSON."""
        return {
            "curve": self.curve.to_config(),
            "array": asdict(self.array),
            "technology": self.technology.to_config(),
            "bank_kib": self.kib,
            "inference_seconds": self.seconds,
        }


@dataclass(frozen=True)
class ChipAccuracies:
    """The accuracies of one chip for each set of inputs, in percent."""

    seed: int
    accuracies: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run: a voltage and a protection, with its energy and its measured accuracies.

    Attributes:
        name: Name of the protection, or of the smaller model.
        kind: Kind of the way.
        voltage: Voltage of the base model's weight memory, in the curve's unit.
        ber: Rate of faulty cells at this voltage.
        weights: Energy of the weight memories, the generator's included, relative to the base model's at the highest
            voltage.
        inference: Energy of the whole inference (weights, inputs, outputs, arithmetic), relative to the base model's
            at the highest voltage.
        accuracies: Accuracy on each chip, in percent; a single one if no cell fails.
        exact: Whether no cell fails, so that all chips are the same.
        protected: Number of most significant bits whose cells do not fail.
    """

    name: str
    kind: Kind
    voltage: float
    ber: float
    weights: float
    inference: float
    accuracies: tuple[float, ...]
    exact: bool = False
    protected: int = 0

    def energy(self, by: By) -> float:
        """Return the relative energy of the weight memories, or of the whole inference."""
        return self.weights if by == "weights" else self.inference

    def to_config(self, target: Target) -> dict[str, Any]:
        """Return the way as JSON, with statistics of its chips and bounds for all chips."""
        met = target.is_met(self.accuracies, exact=self.exact)
        found = {**asdict(self), **target.judge(self.accuracies, exact=self.exact), "meets_target": met}
        return found | {"accuracies": list(self.accuracies)}


class Planner:
    """Measures the accuracy of ways to run a base model, and computes their energies.

    Args:
        base: The deployed base model.
        split: Images to measure on.
        fuses: Trained NeuralFuse modules by name, in eval mode, on the base model's device. Their memory keeps the
            highest voltage.
        faults_at: Called with a voltage; returns the fault model.
        hardware: The hardware to plan for.
        target: The accuracy to reach. Measuring at a voltage stops once no way can reach it.
        chips: Maximum number of chips; by default as many as the target needs.
        partial: File with the prior results of an interrupted run, to which each chip's result is added; None for none.
        say: Called with one line of text per tenth chip.
    Raises:
        ConfigError: a layer cannot be counted, a module does not fit, or there are too few chips for the target.
    """

    def __init__(
        self,
        base: Deployed,
        split: Split,
        fuses: Mapping[str, NeuralFuse] | None = None,
        *,
        faults_at: Callable[[float], FaultModel],
        hardware: Hardware,
        target: Target,
        chips: int | None = None,
        partial: PartialRecord | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        least = 2 if target.share is None else target.chips
        require(chips is None or chips >= least, f"chips must be at least {least} to show {target}: got {chips}.")
        require(target.chips <= MOST_CHIPS, f"a plan can draw {MOST_CHIPS} chips: {target} takes {target.chips}.")
        self.base, self.split = base, split
        self.hardware, self.target, self.chips = hardware, target, chips or target.chips
        self.say = say
        self.partial = partial or PartialRecord(None, {}, resume=False)
        self._faults_at = faults_at
        self.counts = self._count(base.model, base.memory.layers)
        self.fuse_counts: dict[str, Counts] = {}
        self.inputs = [plain_inputs(split, base.input_range)]
        for name, fuse in (fuses or {}).items():
            require(not fuse.training, f"NeuralFuse {name} must be in eval mode: call eval() first.")
            check_same_range(fuse, base)
            self.fuse_counts[name] = self._count(fuse, GENERATOR_LAYERS)
            self.inputs.append(transform(fuse, self.inputs[0]))

    def at(self, voltage: float, protect: Sequence[int] = ()) -> list[Option]:
        """Return the ways to run at one voltage: unprotected, behind each NeuralFuse, and with protected bits.

        Args:
            voltage: Voltage of the weight memory.
            protect: Numbers of most significant bits whose cells keep the highest voltage, without NeuralFuse.
        """
        curve, faults, bits = self.hardware.curve, self.faults_at(voltage), self.base.memory.layout.bits
        energy = curve.energy(voltage)
        alone, *fused = self._measured(f"{voltage!r} {curve.unit}", self.base, self.inputs, faults)
        found = [self._option("no protection", "unprotected", voltage, energy, alone, faults)]
        for (name, counts), accuracies in zip(self.fuse_counts.items(), fused, strict=True):
            found.append(self._option(name, "neuralfuse", voltage, energy, accuracies, faults, fuse=counts))
        for msbs in protect if faults.cell_rate > 0 else ():
            hardened = BitRates.protecting(faults, msbs=msbs, bits=bits)
            (accuracies,) = self._measured(
                f"{voltage!r} {curve.unit}, {msbs} bits", self.base, self.inputs[:1], hardened
            )
            mixed = (msbs + (bits - msbs) * energy) / bits
            name = f"{msbs} bit{'s' * (msbs > 1)} protected"
            made = self._option(name, "protected bits", voltage, mixed, accuracies, hardened)
            found.append(replace(made, protected=msbs))
        return found

    def smaller(self, name: str, model: Deployed) -> list[Option]:
        """Return two ways to run a smaller model without errors: at the highest and the lowest error-free voltage."""
        curve = self.hardware.curve
        inputs, counts = [plain_inputs(self.split, model.input_range)], self._count(model.model, model.memory.layers)
        found = []
        for voltage in sorted({curve.range[1], curve.voltage(0)}, reverse=True):
            faults, energy = self.faults_at(voltage), curve.energy(voltage)
            (accuracies,) = self._measured(f"{name} without errors", model, inputs, faults)
            found.append(self._option(name, "smaller model", voltage, energy, accuracies, faults, run=(model, counts)))
        return found

    def faults_at(self, voltage: float) -> FaultModel:
        """Return the fault model at a voltage. Raise a `ConfigError` unless each seed gives another chip."""
        faults = self._faults_at(voltage)
        drawn = not (faults.has_map or faults.one_chip)
        require(drawn, f"a plan must be made for faults that differ from chip to chip: {faults.kind!r} is one chip.")
        return faults

    def _measured(
        self, part: str, model: Deployed, inputs: Sequence[Tensor], faults: FaultModel
    ) -> list[tuple[float, ...]]:
        """Return the accuracy on each chip, for each set of inputs. If no cell fails, there is one chip."""
        labels = self.split.labels
        chips = planning_chips(faults, self.chips if faults.cell_rate > 0 else 1)

        def measure(chip: Chip) -> ChipAccuracies:
            if faults.cell_rate == 0:
                return ChipAccuracies(chip.seed, tuple(accuracy(model, one, labels) for one in inputs))
            perturbed = model.perturbed(chip)  # transient errors are the same for all sets of inputs
            return ChipAccuracies(
                chip.seed, tuple(accuracy(perturbed.from_first_read(), one, labels) for one in inputs)
            )  # fmt: skip

        def keep(result: ChipAccuracies) -> None:
            done = self.partial.add(result, part)
            if done % 10 == 0:
                self.say(f"{part}: {done} of {len(chips)} chips")

        def by_inputs(results: Sequence[ChipAccuracies]) -> list[tuple[float, ...]]:
            return list(zip(*(one.accuracies for one in results), strict=True))

        results = measure_chips(
            measure, chips, at_once=model.at_once(inputs[0][:1]), prior=self.partial.prior(ChipAccuracies, part),
            report=keep,
            is_enough=lambda found: all(self.target.is_lost(own, len(chips)) for own in by_inputs(found)),
        )  # fmt: skip
        return by_inputs(results)

    def _option(
        self,
        name: str,
        kind: Kind,
        voltage: float,
        energy: float,
        accuracies: Sequence[float],
        faults: FaultModel,
        *,
        run: tuple[Deployed, Counts] | None = None,
        fuse: Counts | None = None,
    ) -> Option:
        technology, kib, seconds = self.hardware.technology, self.hardware.kib, self.hardware.seconds
        (model, counts), nominal = run or (self.base, self.counts), Supply(seconds=seconds)
        memory = model.memory
        low = Supply(
            weights=energy,
            activations=1.0 if model.activations is None else self.hardware.curve.energy(voltage),
            overhead=memory.readout.overhead(memory.layout),
            voltage=voltage / self.hardware.curve.range[1],
            seconds=seconds,
        )
        parts = [technology.inference(counts, bits=memory.layout.bits, kib=kib, supply=low)]
        if fuse is not None:
            parts.append(technology.inference(fuse, bits=_GENERATOR_BITS, kib=kib, supply=nominal))
        whole = technology.inference(self.counts, bits=self.base.memory.layout.bits, kib=kib, supply=nominal)
        return Option(
            name=name,
            kind=kind,
            voltage=voltage,
            ber=faults.ber,
            weights=math.fsum(part.weights for part in parts) / whole.weights,
            inference=math.fsum(part.total for part in parts) / whole.total,
            accuracies=tuple(accuracies),
            exact=faults.cell_rate == 0,
        )

    def _count(self, module: nn.Module, layers: Layers) -> Counts:
        made = count(
            module,
            channels=self.split.images.shape[1],
            image_size=(self.split.images.shape[2], self.split.images.shape[3]),
            array=self.hardware.array,
            layers=layers,
        )
        lost = ", ".join(f"{one.layer} ({one.reason})" for one in made.unknown)
        require(not made.unknown, f"every layer must be counted to plan its energy: {lost} cannot be.")
        return made


def cheapest(
    options: Sequence[Option], target: Target, by: By, *, kinds: Container[Kind] = get_args(Kind)
) -> Option | None:
    """Return the way that reaches the target at the lowest energy; None if none does."""
    fit = [one for one in options if one.kind in kinds and target.is_met(one.accuracies, exact=one.exact)]
    return min(fit, key=lambda one: (one.energy(by), -mean(one.accuracies)), default=None)
