"""The cheapest way to run a model that is accurate enough, found by measuring every one."""

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
MOST_CHIPS = 2500  # of `planning_chips`
_GENERATOR_BITS = 8  # NeuralFuse is trained for 8-bit weights


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a plan is made for.

    Attributes:
        curve: Rates and energies by voltage.
        array: For the accesses.
        technology: What they cost.
        kib: Capacity of a bank of memory.
        seconds: How long an inference takes; needed where the technology leaks.
    """

    curve: VoltageCurve
    array: SystolicArray
    technology: Technology
    kib: float
    seconds: float = 0.0

    def __post_init__(self) -> None:
        kept = "what is kept at the highest one would fail too"
        require(
            self.curve.vmin is not None, f"a voltage curve must reach a voltage without errors to plan with: {kept}."
        )

    def to_config(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "curve": self.curve.to_config(),
            "array": asdict(self.array),
            "technology": self.technology.to_config(),
            "bank_kib": self.kib,
            "inference_seconds": self.seconds,
        }


@dataclass(frozen=True)
class ChipAccuracies:
    """One chip: the accuracy for each set of inputs, in percent."""

    seed: int
    accuracies: tuple[float, ...]


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
        exact: Whether no cell fails, so that there is nothing to draw.
        protected: Most significant bits whose cells do not fail, for protected bits.
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
        """Return the relative energy of the memory of the weights, or of the whole inference."""
        return self.weights if by == "weights" else self.inference

    def to_config(self, target: Target) -> dict[str, Any]:
        """Return it as JSON, with what its chips say about all chips."""
        met = target.is_met(self.accuracies, exact=self.exact)
        found = {**asdict(self), **target.judge(self.accuracies, exact=self.exact), "meets_target": met}
        return found | {"accuracies": list(self.accuracies)}


class Planner:
    """Measures ways to run a base model, one voltage after the other, and knows what each of them costs.

    Args:
        base: The deployed base model.
        split: Images to choose by.
        fuses: Trained NeuralFuse modules by name, in eval mode, on the base model's device; their memory keeps the
            highest voltage.
        faults_at: The fault model at a voltage.
        hardware: What it is planned for.
        target: What is asked; chips are measured no further once no way can reach it.
        chips: How many chips at most; by default as many as the target needs.
        partial: What an interrupted run had measured, and where each chip's result is kept; None for nowhere.
        say: Told of every tenth chip.
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
            voltage: Of the memory of the weights.
            protect: Numbers of most significant bits whose cells keep the highest one, without NeuralFuse.
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
        """Return a smaller base model without errors: at the highest voltage, and at the lowest that makes none."""
        curve = self.hardware.curve
        inputs, counts = [plain_inputs(self.split, model.input_range)], self._count(model.model, model.memory.layers)
        found = []
        for voltage in sorted({curve.range[1], curve.voltage(0)}, reverse=True):
            faults, energy = self.faults_at(voltage), curve.energy(voltage)
            (accuracies,) = self._measured(f"{name} without errors", model, inputs, faults)
            found.append(self._option(name, "smaller model", voltage, energy, accuracies, faults, run=(model, counts)))
        return found

    def faults_at(self, voltage: float) -> FaultModel:
        """Return the fault model at a voltage; raise unless its chips are drawn from seeds, by the curve's rate."""
        faults = self._faults_at(voltage)
        drawn = not (faults.has_map or faults.one_chip)
        require(
            drawn, f"a plan must be made for faults that are drawn anew for every chip: {faults.kind!r} is one chip."
        )
        return faults

    def _measured(
        self, part: str, model: Deployed, inputs: Sequence[Tensor], faults: FaultModel
    ) -> list[tuple[float, ...]]:
        """Return, for each set of inputs, the accuracy on each chip; one without errors where no cell fails."""
        labels = self.split.labels
        chips = planning_chips(faults, self.chips if faults.cell_rate > 0 else 1)

        def measure(chip: Chip) -> ChipAccuracies:
            if faults.cell_rate == 0:
                return ChipAccuracies(chip.seed, tuple(accuracy(model, one, labels) for one in inputs))
            perturbed = model.perturbed(chip)  # transient errors, too, are the same for all inputs
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
    """Return the way that reaches the target at the lowest energy; None where none does."""
    fit = [one for one in options if one.kind in kinds and target.is_met(one.accuracies, exact=one.exact)]
    return min(fit, key=lambda one: (one.energy(by), -mean(one.accuracies)), default=None)
