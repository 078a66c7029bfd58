"""Accuracy over unseen chips, each chip with and without NeuralFuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from neuralfuse.data import Split, SplitLike
from neuralfuse.errors import ConfigError, require
from neuralfuse.evaluation.chips import measure_chips
from neuralfuse.evaluation.stats import mean, sample_sd, t_interval
from neuralfuse.evaluation.text import result_lines
from neuralfuse.faults import Chip, FaultModel, Measured
from neuralfuse.fuse import check_same_range
from neuralfuse.memory import Deployed, check_output, side_by_side
from neuralfuse.scoring import accuracy, plain_inputs, transform

_FEWEST = 5  # least number of chips for an interval


@dataclass(frozen=True)
class ChipResult:
    """The result of one chip.

    Attributes:
        seed: Seed of the chip.
        pa: Accuracy of the perturbed model, in percent.
        pa_nf: Accuracy behind NeuralFuse, in percent; None without one.
        changed_bits: Share of the stored bits that the chip changes.
        not_finite: Number of weights that read as infinity or NaN. Only floating-point words can.
    """

    seed: int
    pa: float
    pa_nf: float | None
    changed_bits: float
    not_finite: int = 0


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation. Accuracies are in percent, recovery is in points. ``print`` shows a table.

    Attributes:
        ca_float: Accuracy of the model before quantization.
        ca: Accuracy of the quantized base model without bit errors.
        ca_nf: That accuracy behind NeuralFuse; None without one.
        per_chip: The results of the single chips.
        faults: The fault model of the chips; None if it is unknown, or the chips differ in it.
    """

    ca_float: float
    ca: float
    ca_nf: float | None
    per_chip: tuple[ChipResult, ...]
    faults: FaultModel | None = None

    @property
    def pa(self) -> float:
        """Mean accuracy of the perturbed models."""
        return mean([chip.pa for chip in self.per_chip])

    @property
    def pa_sd(self) -> float | None:
        """Standard deviation of PA over chips, with n - 1; None for one chip."""
        return sample_sd([chip.pa for chip in self.per_chip])

    @property
    def pa_nf(self) -> float | None:
        """Mean accuracy of the perturbed models behind NeuralFuse."""
        return mean(self._with_nf) if self._with_nf else None

    @property
    def pa_nf_sd(self) -> float | None:
        """Standard deviation of PA(NF) over chips."""
        return sample_sd(self._with_nf) if self._with_nf else None

    @property
    def rp(self) -> float | None:
        """Recovery: mean of PA(NF) - PA over the same chips."""
        return mean(self._gains) if self._gains else None

    @property
    def rp_ci95(self) -> tuple[float, float] | None:
        """Paired 95% Student-t interval of RP over chips. Test images and trained module are fixed."""
        return t_interval(self._gains) if self._gains else None

    @property
    def changed_bits(self) -> float:
        """Mean share of the stored bits that a chip changes."""
        return mean([chip.changed_bits for chip in self.per_chip])

    def values(self) -> dict[str, Any]:
        """Return all means, spreads and intervals by the names that records use."""
        interval = self.rp_ci95
        return {
            "changed_bits": self.changed_bits,
            "chips": len(self.per_chip),
            "ca_float": self.ca_float,
            "ca": self.ca,
            "pa": self.pa,
            "pa_sd": self.pa_sd,
            "ca_nf": self.ca_nf,
            "pa_nf": self.pa_nf,
            "pa_nf_sd": self.pa_nf_sd,
            "rp": self.rp,
            "rp_ci95": None if interval is None else list(interval),
        }

    def __str__(self) -> str:
        """Return a table of the means, their spread over chips, and the recovery with its interval."""
        values = self.values()
        rate = "" if self.faults is None else f"{100 * self.faults.ber:.4g}% faulty ({self.faults.kind}); "
        chips = f"{values['chips']} chip{'s' * (values['chips'] > 1)}"
        first = f"{rate}{values['changed_bits']:.3%} of the stored bits changed; {chips}"
        return "\n".join([first, *result_lines(values)])

    @property
    def _with_nf(self) -> list[float]:
        return [chip.pa_nf for chip in self.per_chip if chip.pa_nf is not None]

    @property
    def _gains(self) -> list[float]:
        return [chip.pa_nf - chip.pa for chip in self.per_chip if chip.pa_nf is not None]


def generator_chip(chip: Chip, base: Deployed) -> Chip:
    """Return the chip through which the generator's own weights are read.

    The generator's weights follow the base model's on a fault map; otherwise they get their own chip with faults of
    the same kind.
    """
    faults = chip.faults
    if isinstance(faults, Measured) and not faults.random_offset:
        offset = faults.mapping.offset + base.memory.layout.words
        return Chip(replace(faults, mapping=replace(faults.mapping, offset=offset)), chip.seed)
    return Chip(faults, chip.seed + 1_000_000)


def evaluate(
    base: Deployed,
    images: SplitLike,
    chips: Sequence[Chip],
    *,
    fuse: nn.Module | None = None,
    prior: Mapping[int, ChipResult] | None = None,
    plain: Evaluation | None = None,
    report: Callable[[ChipResult], None] | None = None,
    until: float | None = None,
) -> Evaluation:
    """Measure CA, PA and, with a NeuralFuse, CA(NF), PA(NF) and RP over the same chips.

    Args:
        base: The deployed model.
        images: Test images with labels: a `Split`, a pair of tensors, or a DataLoader; see `Split.of`.
        chips: Chips unseen in training, for instance ``faults.chips(30)``.
        fuse: A trained NeuralFuse (or any module on the model's inputs), on the same device, in eval mode. A deployed
            one (`deploy(fuse)`) has faulty weights too, in a memory of its own; see `generator_chip`.
        prior: Results by chip seed from an interrupted run of the same evaluation. Their chips are not measured again.
        plain: The same evaluation without NeuralFuse. Its CA and the PA of its chips are not measured again.
        report: Called with the result of each newly measured chip, in the order of the chips.
        until: Width in points. Stop once the 95% interval of PA(NF), or of PA without a NeuralFuse, is at most this
            wide, after five chips at the earliest. Early stopping makes the interval slightly too narrow.
    Raises:
        ConfigError: ``fuse`` is in training mode or has another input range, there is no chip, or ``until`` is not
            positive.
        DataError: ``images`` are no images with labels.
    """
    if not isinstance(base, Deployed):
        raise ConfigError(f"the base model must be deployed: got a {type(base).__name__}. Call deploy(model) first.")
    if not isinstance(chips, Sequence) or not all(isinstance(chip, Chip) for chip in chips):
        raise ConfigError(f"chips must be a list of chips, e.g. Stuck(ber=0.01).chips(30): got {chips!r:.80}.")
    require(len(chips) >= 1, "there must be at least one chip: got none.")
    require(until is None or until > 0, f"until must be positive: got until={until}.")
    if fuse is not None:
        require(not fuse.training, "NeuralFuse must be in eval mode to be evaluated: call fuse.eval() first.")
        check_same_range(fuse, base)
    split = Split.of(images)
    split = split.to(base.memory.device)
    check_output(base, split.images[:1], int(split.labels.max()) + 1, at_least=True)
    inputs, labels = plain_inputs(split, base.input_range), split.labels
    fused = None if fuse is None else transform(fuse, inputs)
    before = {} if plain is None else {chip.seed: chip for chip in plain.per_chip}

    def one(chip: Chip) -> ChipResult:
        model = base.perturbed(chip)
        result = before.get(chip.seed)
        if result is None:
            pa = accuracy(model.from_first_read(), inputs, labels)
            result = ChipResult(chip.seed, pa, None, model.changed_bits, model.reading.not_finite)
        x = transform(fuse.perturbed(generator_chip(chip, base)), inputs) if isinstance(fuse, Deployed) else fused
        # Both passes begin at read 0, so that transient errors are the same with and without NeuralFuse.
        return result if x is None else replace(result, pa_nf=accuracy(model.from_first_read(), x, labels))

    at_once = min(model.at_once(inputs[:1]) for model in (base, fuse) if isinstance(model, Deployed))
    results = measure_chips(
        one, chips, at_once=at_once, prior=prior, report=report,
        is_enough=lambda results: until is not None and len(results) >= _FEWEST and _width(results) <= until,
    )  # fmt: skip
    faults = chips[0].faults if all(chip.faults == chips[0].faults for chip in chips) else None
    without_errors: list[tuple[Callable[[Tensor], Tensor], Tensor]] = []
    if plain is None:
        without_errors = [(base.unquantized, inputs), (base, inputs)]
    if fused is not None:
        without_errors.append((base, fused))
    clean_accuracies = list(side_by_side(lambda pair: accuracy(*pair, labels), without_errors, at_once))
    ca_nf = None if fused is None else clean_accuracies.pop()
    ca_float, ca = clean_accuracies if plain is None else (plain.ca_float, plain.ca)
    return Evaluation(ca_float, ca, ca_nf, tuple(results), faults)


def _width(results: Sequence[ChipResult]) -> float:
    """Return the width of the 95% interval of PA(NF), or of PA without NeuralFuse, in points."""
    low, high = t_interval([one.pa if one.pa_nf is None else one.pa_nf for one in results]) or (-math.inf, math.inf)
    return high - low
