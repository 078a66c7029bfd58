"""What a protected model is worth: its accuracy without bit errors, and on each of some chips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

from torch import Tensor

from neuralfuse.data import Split
from neuralfuse.evaluation import ChipResult
from neuralfuse.faults import BitRates, Chip, FaultModel, Flip, evaluation_chips
from neuralfuse.memory import Perturbed, side_by_side
from neuralfuse.methods.base import Protected
from neuralfuse.scoring import accuracy, plain_inputs, transform


def measure(
    made: Protected,
    split: Split,
    faults: FaultModel,
    chips: int,
    *,
    known: Mapping[int, ChipResult] | None = None,
    report: Callable[[ChipResult], None] = lambda result: None,
) -> tuple[float, list[ChipResult]]:
    """Return the accuracy without bit errors and that on each unseen chip, in percent, all with the protection.

    Args:
        made: The protected model.
        split: Test images; methods that look at batches see them in this order.
        faults: Of the cells that are not hardened.
        chips: How many; the same ones for every method.
        known: Results by chip seed from an interrupted run; not measured again.
        report: Called after each newly measured chip, in their order.
    """
    inputs, labels = plain_inputs(split, made.deployed.input_range), split.labels
    if made.fuse is not None:
        inputs = transform(made.fuse, inputs)

    def answering(perturbed: Perturbed) -> Callable[[Tensor], Tensor]:
        return perturbed if made.on_chip is None else made.on_chip(perturbed)

    def one(chip: Chip) -> ChipResult:
        if known is not None and chip.seed in known:
            return known[chip.seed]
        perturbed = made.deployed.perturbed(chip)
        value = accuracy(answering(perturbed), inputs, labels)
        return ChipResult(chip.seed, value, None, perturbed.changed_bits, perturbed.reading.not_finite)

    nominal = accuracy(answering(made.deployed.perturbed(Chip(Flip(ber=0.0), 0))), inputs, labels)
    the_faults = hardened(faults, made)
    the_chips = evaluation_chips(the_faults, chips)
    if the_faults.cell_rate == 0:
        return nominal, [ChipResult(chip.seed, nominal, None, 0.0) for chip in the_chips]
    results = []
    at_once = made.deployed.at_once(inputs[:2])
    with closing(side_by_side(one, the_chips, at_once)) as measured:
        for result in measured:
            results.append(result)
            if known is None or result.seed not in known:
                report(result)
    return nominal, results


def hardened(faults: FaultModel, made: Protected) -> FaultModel:
    """Return the faults of a memory some of whose bits do not fail."""
    if not made.hardened:
        return faults
    return BitRates.protecting(faults, msbs=made.hardened, bits=made.deployed.memory.layout.bits)
