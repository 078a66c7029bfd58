"""EOPM's gradient with respect to F(x): which passes a step takes, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from neuralfuse.config import EopmConfig
from neuralfuse.faults import Chip, FaultModel, training_chip
from neuralfuse.memory import Deployed, Perturbed, side_by_side
from neuralfuse.seeds import generator

_FP16_SCALE = 1024.0  # an image's gradient, where its loss counts 1, is mostly below what fp16 holds


@dataclass(frozen=True)
class Pass:
    """One pass of a step: through which chip (None: without bit errors), and which rows of the mini-batch."""

    chip: Chip | None
    rows: Tensor


def passes(config: EopmConfig, faults: FaultModel, count: int, step: int) -> list[Pass]:
    """Return the perturbed passes of one step over a mini-batch of ``count`` images."""
    number = 1 if faults.one_chip else config.n_chips  # where all seeds are one chip, once is enough
    chips = [training_chip(faults, config.seed, step, k) for k in range(number)]
    if config.estimator == "crossed":
        return [Pass(chip, torch.arange(count)) for chip in chips]
    order = torch.randperm(count, generator=generator(config.seed, "deal", step))
    groups = order.tensor_split(number)  # sizes differ by at most one
    return [Pass(chip, rows) for chip, rows in zip(chips, groups, strict=True) if len(rows)]


def eopm_backward(
    base: Deployed, transformed: Tensor, labels: Tensor, perturbed: Sequence[Pass], *, lam: float, share: float = 1.0
) -> tuple[float, float]:
    """Add the EOPM gradient of one base model to ``transformed.grad``: CE(M0) + lam * mean CE(Mp).

    Each pass is differentiated by itself, a micro-batch at a time, so memory does not grow with their number. On a CPU
    as many as the base model allows run side by side; their gradients are added in the order of the passes. Every pass
    counts by its images: with all passes over all rows that is the mean over chips, with dealt rows the mean over
    images. In fp16 a gradient that overflows is taken again in full precision.

    Args:
        base: The base model.
        transformed: F(x), a leaf that requires grad, (N, C, H, W).
        labels: int64 (N,).
        perturbed: The perturbed passes.
        lam: Weight of the perturbed loss.
        share: Factor of the whole, for an ensemble of base models.
    Returns:
        The two mean losses, clean and perturbed, without ``lam`` and ``share``.
    Source:
        NeuralFuse (arXiv 2306.16869), Eq. 3 and Algorithm 1.
    """
    x = transformed.detach()
    clean, faulty, gradient = _summed(base, x, labels, perturbed, lam)
    if base.running.autocast == "fp16" and not bool(gradient.isfinite().all()):
        clean, faulty, gradient = _summed(base.in_full_precision, x, labels, perturbed, lam)
    gradient *= share
    transformed.grad = gradient if transformed.grad is None else transformed.grad.add_(gradient)
    means = torch.stack([clean, faulty]).tolist()  # the one time that a GPU is waited for
    return means[0], means[1]


def _summed(
    base: Deployed, x: Tensor, labels: Tensor, perturbed: Sequence[Pass], lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two mean losses, and the gradient of the whole."""
    at_once = base.at_once(x)
    rows = torch.arange(len(labels)).tensor_split(min(at_once, len(labels)))
    plan = [*(Pass(None, part) for part in rows), *perturbed]
    images = sum(len(one.rows) for one in perturbed)
    losses = [torch.zeros((), dtype=x.dtype, device=x.device) for _ in range(2)]
    gradient = torch.zeros_like(x)

    def run(one: Pass) -> tuple[Tensor, Tensor]:
        return _differentiated(base, one.chip, x[one.rows], labels[one.rows])

    for one, (loss, own) in zip(plan, side_by_side(run, plan, at_once), strict=True):
        faulty = one.chip is not None
        share = 1 / images if faulty else 1 / len(labels)
        losses[faulty] += share * loss
        gradient.index_add_(0, one.rows.to(x.device), own, alpha=lam * share if faulty else share)
    return losses[0], losses[1], gradient


def _differentiated(base: Deployed, chip: Chip | None, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the images' losses and its gradient, as through one chip or none."""
    model = base if chip is None else base.perturbed(chip)
    scale = _FP16_SCALE if base.running.autocast == "fp16" else 1.0

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        if isinstance(model, Perturbed):
            model.reads = 0  # one read of the memory, however many micro-batches go through it
        leaf = x[rows].requires_grad_()
        loss = F.cross_entropy(model(leaf), labels[rows], reduction="sum")
        (gradient,) = torch.autograd.grad(scale * loss, leaf)
        return loss.detach(), gradient / scale

    losses, gradients = zip(*base.in_parts(x, part), strict=True)
    return torch.stack(losses).sum(), torch.cat(gradients)
