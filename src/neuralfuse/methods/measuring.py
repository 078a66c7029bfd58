"""What a protected model is worth: its accuracy without bit errors and on each of some chips, and its latency."""

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
    made: Protected,
    split: Split,
    faults: FaultModel,
    chips: int,
    *,
    prior: Mapping[int, ChipResult] | None = None,
    report: Callable[[ChipResult], None] = lambda result: None,
) -> tuple[float, list[ChipResult]]:
    """Return the accuracy without bit errors and that on each unseen chip, in percent, all with the protection.

    Where chips fit the NeuralFuse to themselves, the first is the accuracy behind the module that they all start from.

    Args:
        made: The protected model.
        split: Test images. Methods that look at batches see them in this order.
        faults: Of the cells that are not hardened.
        chips: How many; the same ones for every method.
        prior: Results by chip seed from an interrupted run. Those chips are not measured again.
        report: Called after each newly measured chip, in their order.
    """
    plain, labels = plain_inputs(split, made.deployed.input_range), split.labels
    inputs = plain if made.fuse is None else transform(made.fuse, plain)
    batch = math.ceil(len(labels) / math.ceil(len(labels) / BATCH))  # no short one at the end

    def one(chip: Chip) -> ChipResult:
        own = inputs
        if made.fitted is not None:
            own = transform(made.fitted(made.deployed.perturbed(chip), made.deployed), plain)
        perturbed = made.deployed.perturbed(chip)
        value = accuracy(made.answer(perturbed), own, labels, batch)
        return ChipResult(chip.seed, value, None, perturbed.changed_bits, perturbed.reading.not_finite)

    nominal = accuracy(made.answer(_clean(made)), inputs, labels, batch)
    the_faults = made.faults_left(faults)
    the_chips = the_faults.chips(chips)
    if the_faults.cell_rate == 0:
        return nominal, [ChipResult(chip.seed, nominal, None, 0.0) for chip in the_chips]
    at_once = made.deployed.at_once(inputs[:2]) if made.fitted is None else 1  # a training keeps all cores busy itself
    return nominal, measure_chips(one, the_chips, at_once=at_once, prior=prior, report=report)


def answer_seconds(
    made: Protected, plain: Protected, inputs: Tensor, repeats: int = 15
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the seconds in which the plain model, and the protected one, answer a batch of inputs, turn by turn.

    Args:
        made: The protected model, at full voltage. What a chip does once, before it answers, is not counted.
        plain: The model without protection.
        inputs: (N, C, H, W), on the models' device.
        repeats: How often.
    """
    behind, fuse = made.around(_clean(made)), made.fuse
    ways: list[Answer] = [plain.around(_clean(plain)), lambda x: behind(x if fuse is None else fuse(x))]
    taken: list[list[float]] = [[], []]
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for way, own in zip(ways, taken, strict=True):
                start = time.perf_counter()
                float(way(inputs).sum())  # waits for the device
                if turn:  # the first one chooses how to run
                    own.append(time.perf_counter() - start)
    return taken[0], taken[1]


def _clean(made: Protected) -> Perturbed:
    return made.deployed.perturbed(Chip(Flip(ber=0.0), 0))
