"""Measurements of a protected model: its accuracy without bit errors and on each chip, and its latency."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from neuralfuse.data import Split
from neuralfuse.evaluation import ChipResult, measure_chips
from neuralfuse.faults import Chip, FaultModel, Flip
from neuralfuse.memory import Perturbed
from neuralfuse.methods.base import Answer, Protected
from neuralfuse.scoring import BATCH, accuracy, plain_inputs, transform


def measure_protected(
    protected: Protected,
    split: Split,
    faults: FaultModel,
    chips: int,
    *,
    prior: Mapping[int, ChipResult] | None = None,
    report: Callable[[ChipResult], None] = lambda result: None,
) -> tuple[float, list[ChipResult]]:
    """Return a protected model's accuracy without bit errors, and its result on each unseen chip, in percent.

    If each chip has its own fitted NeuralFuse, the accuracy without bit errors is that behind the general one.

    Args:
        protected: The protected model.
        split: Test images, in the order in which methods that use whole batches get them.
        faults: Fault model of the cells that are not hardened.
        chips: Number of chips. Every method is measured on the same ones.
        prior: Results by chip seed from an interrupted run. Their chips are not measured again.
        report: Called with the result of each newly measured chip, in the order of the chips.
    """
    plain, labels = plain_inputs(split, protected.deployed.input_range), split.labels
    inputs = plain if protected.fuse is None else transform(protected.fuse, plain)
    batch = math.ceil(len(labels) / math.ceil(len(labels) / BATCH))  # equal batches, without a short last one

    def one(chip: Chip) -> ChipResult:
        own = inputs
        if protected.fitted is not None:
            own = transform(protected.fitted(protected.deployed.perturbed(chip), protected.deployed), plain)
        perturbed = protected.deployed.perturbed(chip)
        value = accuracy(protected.answer(perturbed), own, labels, batch)
        return ChipResult(chip.seed, value, None, perturbed.changed_bits, perturbed.reading.not_finite)

    nominal = accuracy(protected.answer(_clean(protected)), inputs, labels, batch)
    the_faults = protected.faults_left(faults)
    the_chips = the_faults.chips(chips)
    if the_faults.cell_rate == 0:
        return nominal, [ChipResult(chip.seed, nominal, None, 0.0) for chip in the_chips]
    # Fitting already uses all cores.
    at_once = protected.deployed.at_once(inputs[:2]) if protected.fitted is None else 1
    return nominal, measure_chips(one, the_chips, at_once=at_once, prior=prior, report=report)


def answer_seconds(
    protected: Protected, plain: Protected, inputs: Tensor, repeats: int = 15
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the seconds per batch of the plain model and of the protected model, timed in alternation.

    Args:
        protected: The protected model, at full voltage. Work that a chip does only once is not counted.
        plain: The model without protection.
        inputs: One batch of model inputs, (N, C, H, W), on the models' device.
        repeats: Number of timings per model.
    """
    behind, fuse = protected.around(_clean(protected)), protected.fuse
    ways: list[Answer] = [plain.around(_clean(plain)), lambda x: behind(x if fuse is None else fuse(x))]
    taken: list[list[float]] = [[], []]
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for way, own in zip(ways, taken, strict=True):
                start = time.perf_counter()
                float(way(inputs).sum())  # waits for the device
                if turn:  # the first turn is a warm-up, in which the model chooses how to run
                    own.append(time.perf_counter() - start)
    return taken[0], taken[1]


def _clean(protected: Protected) -> Perturbed:
    return protected.deployed.perturbed(Chip(Flip(ber=0.0), 0))
