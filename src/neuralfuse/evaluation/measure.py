"""Accuracy over unseen chips, each chip with and without NeuralFuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from torch import Tensor, nn

from neuralfuse.data import Split
from neuralfuse.errors import require
from neuralfuse.evaluation.stats import mean, sample_sd, t_interval
from neuralfuse.faults import Chip, Measured
from neuralfuse.fuse import check_same_range
from neuralfuse.memory import Deployed, side_by_side
from neuralfuse.scoring import accuracy, plain_inputs, transform

_FEWEST = 5  # chips before an interval is believed


@dataclass(frozen=True)
class ChipResult:
    """One chip: accuracies in percent; ``pa_nf`` is None where no NeuralFuse was asked for.

    ``not_finite`` counts the weights that read as infinity or NaN, as floating-point words may.
    """

    seed: int
    pa: float
    pa_nf: float | None
    changed_bits: float
    not_finite: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What was measured; accuracies in percent, recovery in percentage points.

    Attributes:
        ca_float: Accuracy of the model before quantization.
        ca: Accuracy of the base model, without bit errors.
        ca_nf: The same behind NeuralFuse; None without one.
        per_chip: The raw values.
    """

    ca_float: float
    ca: float
    ca_nf: float | None
    per_chip: tuple[ChipResult, ...]

    @property
    def pa(self) -> float:
        """Mean accuracy of the perturbed models."""
        return mean([chip.pa for chip in self.per_chip])

    @property
    def pa_sd(self) -> float | None:
        """Its standard deviation over chips, with n - 1; None for one chip."""
        return sample_sd([chip.pa for chip in self.per_chip])

    @property
    def pa_nf(self) -> float | None:
        """Mean accuracy of the perturbed models behind NeuralFuse."""
        return mean(self._with_nf) if self._with_nf else None

    @property
    def pa_nf_sd(self) -> float | None:
        """Its standard deviation over chips."""
        return sample_sd(self._with_nf) if self._with_nf else None

    @property
    def rp(self) -> float | None:
        """Recovery: mean of PA(NF) - PA over the same chips."""
        return mean(self._gains) if self._gains else None

    @property
    def rp_ci95(self) -> tuple[float, float] | None:
        """Its 95% Student-t interval over chips, paired; test images and trained module held fixed."""
        return t_interval(self._gains) if self._gains else None

    @property
    def changed_bits(self) -> float:
        """Mean share of the stored bits that a chip changes."""
        return mean([chip.changed_bits for chip in self.per_chip])

    @property
    def _with_nf(self) -> list[float]:
        return [chip.pa_nf for chip in self.per_chip if chip.pa_nf is not None]

    @property
    def _gains(self) -> list[float]:
        return [chip.pa_nf - chip.pa for chip in self.per_chip if chip.pa_nf is not None]


def generator_chip(chip: Chip, base: Deployed) -> Chip:
    """Return where the weights of G lie, where they are faulty too: behind the base model's on a fault map, and on
    other cells of the same kind else."""
    faults = chip.faults
    if isinstance(faults, Measured) and not faults.random_offset:
        offset = faults.mapping.offset + base.memory.layout.words
        return Chip(replace(faults, mapping=replace(faults.mapping, offset=offset)), chip.seed)
    return Chip(faults, chip.seed + 1_000_000)


def evaluate(
    base: Deployed,
    split: Split,
    chips: Sequence[Chip],
    *,
    fuse: nn.Module | None = None,
    known: Mapping[int, ChipResult] | None = None,
    plain: Evaluation | None = None,
    report: Callable[[ChipResult], None] | None = None,
    until: float | None = None,
) -> Evaluation:
    """Measure CA, PA and, with a NeuralFuse, CA(NF), PA(NF) and RP over the same chips.

    Args:
        base: The deployed model.
        split: Test images.
        chips: Chips unseen in training, for instance `evaluation_chips`.
        fuse: A trained NeuralFuse (or any module on the model's inputs), on the same device, in eval mode. A deployed
            one (`deploy(fuse)`) has faulty weights too: each chip's other memory, see `generator_chip`.
        known: Results by chip seed from an interrupted run of the very same evaluation; not measured again.
        plain: The same evaluation without NeuralFuse; its CA and the PA of its chips are not measured again.
        report: Called after each newly measured chip, in their order.
        until: Stop once the 95% interval of PA(NF), of PA without a NeuralFuse, is at most this many points wide, after
            five chips at the earliest. Stopping at a look makes intervals a little too narrow.
    Raises:
        ConfigError: ``fuse`` is in training mode, or made for inputs of another kind.
    """
    require(len(chips) >= 1, "there must be at least one chip: got none.")
    require(until is None or until > 0, f"until must be positive: got until={until}.")
    if fuse is not None:
        require(not fuse.training, "NeuralFuse must be in eval mode to be evaluated: call fuse.eval() first.")
        check_same_range(fuse, base)
    images, labels = plain_inputs(split, base.input_range), split.labels
    clean = None if fuse is None else transform(fuse, images)
    before = {} if plain is None else {chip.seed: chip for chip in plain.per_chip}

    def one(chip: Chip) -> ChipResult:
        if known is not None and chip.seed in known:
            return known[chip.seed]
        model = base.perturbed(chip)
        result = before.get(chip.seed)
        if result is None:
            pa = accuracy(model, images, labels)
            result = ChipResult(chip.seed, pa, None, model.changed_bits, model.reading.not_finite)
            model.reads = 0  # transient errors, too, are the same with and without NeuralFuse
        fused = transform(fuse.perturbed(generator_chip(chip, base)), images) if isinstance(fuse, Deployed) else clean
        return result if fused is None else replace(result, pa_nf=accuracy(model, fused, labels))

    results: list[ChipResult] = []
    at_once = min(model.at_once(images[:1]) for model in (base, fuse) if isinstance(model, Deployed))
    with closing(side_by_side(one, chips, at_once)) as measured:
        for result in measured:
            results.append(result)
            if report is not None and (known is None or result.seed not in known):
                report(result)
            if until is not None and len(results) >= _FEWEST and _width(results) <= until:
                break
    without_errors: list[tuple[Callable[[Tensor], Tensor], Tensor]] = []
    if plain is None:
        without_errors = [(base.unquantized, images), (base, images)]
    if clean is not None:
        without_errors.append((base, clean))
    clean_accuracies = list(side_by_side(lambda pair: accuracy(*pair, labels), without_errors, at_once))
    ca_nf = None if clean is None else clean_accuracies.pop()
    ca_float, ca = clean_accuracies if plain is None else (plain.ca_float, plain.ca)
    return Evaluation(ca_float, ca, ca_nf, tuple(results))


def _width(results: Sequence[ChipResult]) -> float:
    """Return the width of the 95% interval of the last accuracy that was measured, in points."""
    low, high = t_interval([one.pa if one.pa_nf is None else one.pa_nf for one in results]) or (-math.inf, math.inf)
    return high - low
