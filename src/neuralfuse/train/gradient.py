"""EOPM's gradient with respect to F(x): the passes of a training step, and how they run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralfuse.config import EopmConfig
from neuralfuse.faults import Chip, FaultModel, training_chip
from neuralfuse.memory import Deployed, side_by_side
from neuralfuse.seeds import generator
from neuralfuse.train.ranks import ALONE, Ranks

_FP16_SCALE = 1024.0  # the gradient of one image's loss is mostly too small for fp16


@dataclass(frozen=True)
class Pass:
    """One pass of a step.

    Attributes:
        chip: The chip that the weights are read through; None for a pass without bit errors.
        rows: Rows of the mini-batch that take this pass, int64 (k,).
    """

    chip: Chip | None
    rows: Tensor


def passes(config: EopmConfig, faults: FaultModel, count: int, step: int) -> list[Pass]:
    """Return the perturbed passes of one step over a mini-batch of ``count`` images."""
    number = 1 if faults.one_chip else config.n_chips  # if all seeds give the same chip, one pass is enough
    chips = [training_chip(faults, config.seed, step, k) for k in range(number)]
    if config.estimator == "crossed":
        return [Pass(chip, torch.arange(count)) for chip in chips]
    order = torch.randperm(count, generator=generator(config.seed, "deal", step))
    groups = order.tensor_split(number)  # sizes differ by at most one
    return [Pass(chip, rows) for chip, rows in zip(chips, groups, strict=True) if len(rows)]


def eopm_backward(
    bases: Deployed | Sequence[Deployed],
    transformed: Tensor,
    labels: Tensor,
    perturbed: Sequence[Pass],
    *,
    lam: float,
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Add the gradient of the EOPM loss, CE(M0) + lam * mean CE(Mp), to ``transformed.grad``.

    Each pass is differentiated separately, one micro-batch at a time, so memory does not grow with the number of
    passes. On a CPU, passes run in parallel as far as the base model allows. Their gradients are added in the order of
    the passes. The mean is over all images of all perturbed passes. If a gradient overflows in fp16, the process that
    computed it repeats the computation in full precision.

    Args:
        bases: The base model, or several whose losses are averaged.
        transformed: F(x), a leaf that requires grad, (N, C, H, W).
        labels: Class labels, int64 (N,), or class probabilities (N, classes).
        perturbed: The perturbed passes.
        lam: Weight of the perturbed loss.
        ranks: The processes that share the passes. Each of them gets the whole gradient.
    Returns:
        The two mean losses, clean and perturbed, without ``lam``.
    Source:
        NeuralFuse (arXiv 2306.16869), Eq. 3 and Algorithm 1.
    """
    bases = [bases] if isinstance(bases, Deployed) else list(bases)
    x = transformed.detach()
    plan = own_share([*perturbed, Pass(None, torch.arange(len(labels)))], ranks)
    weights = 1 / len(labels), 1 / max(1, sum(len(one.rows) for one in perturbed))
    total = x.new_zeros(x.numel() + 2)  # the gradient and the two losses, to be exchanged in one message
    for base in bases:
        part = _summed(base, x, labels, plan, weights, lam)
        if base.running.autocast == "fp16" and not bool(part.isfinite().all()):
            part = _summed(base.in_full_precision, x, labels, plan, weights, lam)
        total += part / len(bases)
    ranks.total(total)
    gradient = total[:-2].view_as(x)
    transformed.grad = gradient if transformed.grad is None else transformed.grad.add_(gradient)
    clean, faulty = total[-2:].tolist()
    return clean, faulty


def own_share(plan: Sequence[Pass], ranks: Ranks) -> list[Pass]:
    """Return one process's share of the passes. A pass may be split, so that all processes get as many images."""
    count = sum(len(one.rows) for one in plan)
    first, last = (count * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    own, start = [], 0
    for one in plan:
        rows = one.rows[max(0, first - start) : max(0, last - start)]
        start += len(one.rows)
        if len(rows):
            own.append(Pass(one.chip, rows))
    return own


def _summed(
    base: Deployed, x: Tensor, labels: Tensor, plan: Sequence[Pass], weights: tuple[float, float], lam: float
) -> Tensor:
    """Return the flattened gradient of some passes, followed by the clean and the perturbed loss.

    ``weights`` are those of one image in a clean and in a perturbed pass.
    """
    at_once = base.at_once(x)
    if base.running.micro_batch != 0:  # if it is 0, the output for an image depends on the other images of its pass
        plan = _in_pieces(plan, at_once)
    total = x.new_zeros(x.numel() + 2)
    gradient = total[:-2].view_as(x)

    def run(one: Pass) -> tuple[Tensor, Tensor]:
        return _differentiated(base, one.chip, x[one.rows], labels[one.rows])

    with closing(side_by_side(run, plan, at_once)) as results:
        for one, (loss, own) in zip(plan, results, strict=True):
            faulty = one.chip is not None
            weight = weights[faulty]
            total[-1 if faulty else -2] += weight * loss
            gradient.index_add_(0, one.rows.to(x.device), own, alpha=lam * weight if faulty else weight)
    return total


def _in_pieces(plan: Sequence[Pass], at_once: int) -> list[Pass]:
    """Split long passes, and the clean pass at the end, so that all threads get about the same amount of work."""
    most = -(-sum(len(one.rows) for one in plan) // (2 * at_once))
    pieces = []
    for one in plan:
        count = -(-len(one.rows) // most) if at_once > 1 else 1
        if one.chip is None:
            count = min(max(count, at_once), len(one.rows))
        pieces += [Pass(one.chip, rows) for rows in one.rows.tensor_split(count)]
    return pieces


def _differentiated(base: Deployed, chip: Chip | None, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the images' losses through one chip (None: no bit errors), and its gradient."""
    # All micro-batches share one read of the memory.
    model = base if chip is None else partial(base.perturbed(chip), read=0)
    scale = _FP16_SCALE if base.running.autocast == "fp16" else 1.0

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        leaf = x[rows].requires_grad_()
        loss = F.cross_entropy(model(leaf), labels[rows], reduction="sum")
        (gradient,) = torch.autograd.grad(scale * loss, leaf)
        return loss.detach(), gradient / scale

    losses, gradients = zip(*base.in_parts(x, part), strict=True)
    return torch.stack(losses).sum(), torch.cat(gradients)
