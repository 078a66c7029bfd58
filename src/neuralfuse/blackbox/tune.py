"""Fitting a NeuralFuse to a black-box model by an evolution strategy, within a number of queries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from neuralfuse.blackbox.answers import Answers
from neuralfuse.blackbox.judge import check_fits
from neuralfuse.blackbox.limited import LimitedBox
from neuralfuse.config import TuningConfig
from neuralfuse.data import DataSet, Split
from neuralfuse.errors import AnswerError, require
from neuralfuse.evaluation import mean, t_interval
from neuralfuse.fuse import NeuralFuse
from neuralfuse.quant import snap_
from neuralfuse.runs import RunInfo
from neuralfuse.scoring import plain_inputs, transform
from neuralfuse.seeds import generator
from neuralfuse.train import generator_scheme, training_images

SCHEMA = "neuralfuse/tuning/1"
_WORST = 20.0  # largest loss of an image; also its loss if a faulty chip returns NaN


def tune(
    fuse: NeuralFuse,
    box: LimitedBox,
    data: DataSet,
    tuning: TuningConfig | None = None,
    *,
    images: int = 0,
    nominal: LimitedBox | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[NeuralFuse, dict[str, Any]]:
    """Return a NeuralFuse fitted to a black-box model by its answers alone, and the record.

    An evolution strategy with antithetic sampling estimates the gradient of the loss with respect to all weights of the
    generator. Each step compares pairs of modules at random, opposite offsets from the current one, on the same images.
    The loss is the cross-entropy if the model returns scores, and the error rate if it returns classes only.

    At the end, the given module and the tuned one are compared on other images. The tuned module is returned only if
    the 95% interval of its gain lies above 0; otherwise a copy of the given one.

    All queries follow from the seed. So with a cache, the same call after an interruption repeats none of them.

    Args:
        fuse: In eval mode; not modified.
        box: The model, one chip with its own faults.
        data: Training images to learn from, and validation images for the comparison.
        tuning: Number of queries, step sizes and the seed.
        images: Number of training images, a fixed random subset; 0 for all.
        nominal: The same model without faults. Its answers replace the labels, in learning and in the comparison; they
            do not count as ``queries``, and neither do retries.
        say: Called with a line after each tenth of the steps.

    Raises:
        ConfigError: module and images do not fit together, or there are fewer images than asked for.
        NeuralFuseError: a query failed, see `LimitedBox`.
    Source:
        Salimans et al., arXiv 1703.03864.
    """
    tuning, run = tuning or TuningConfig(), RunInfo()
    check_fits(fuse, data.train.images, fuse.input_range)
    learn = training_images(data, images)
    judge = data.validation[data.validation.order(data.name, "black box")[: tuning.judged]]
    steps, search, history = tuning.steps(len(judge)), _Search(fuse, tuning), []
    _check_budget(box, tuning)
    for step in range(steps):
        places = torch.randint(len(learn), (tuning.step_images,), generator=generator(tuning.seed, "images", step))
        x, right = _queries(learn[places.to(learn.labels.device)], fuse, nominal)
        history.append(mean(search.step(step, box, x, right)))
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"step {step + 1} of {steps}: loss {history[-1]:.3f}, {box.asked} images sent")
    tuned = search.module()
    x, right = _queries(judge, fuse, nominal)
    hits = [box(transform(one, x.to(fuse.scale.device))).right(right).double().mul(100) for one in (fuse, tuned)]
    before, after = (one.tolist() for one in hits)
    gains = [two - one for one, two in zip(before, after, strict=True)]
    interval = t_interval(gains)
    better = interval is not None and interval[0] > 0
    config = {
        **asdict(tuning),
        "images": len(learn),
        "box": box.box.name,
        **box.box.options,
        "nominal": None if nominal is None else nominal.box.name,
        "data": data.to_config(),
    }
    made = tuned if better else copy.deepcopy(fuse)
    tunings = [*fuse.trained.get("tuned", []), *([config] if better else [])]
    made.trained = {**fuse.trained, **({"tuned": tunings} if tunings else {})}
    record = {
        "schema": SCHEMA,
        "config": {**config, "kind": box.kind, "fuse": fuse.trained},
        "before": mean(before),
        "after": mean(after),
        "gain": mean(gains),
        "gain_ci95": None if interval is None else list(interval),
        "kept": "tuned" if better else "as it was",
        "steps": steps,
        "judged": len(judge),
        "history": history,
        "run": {
            **run.collect(), "asked": box.asked, "known": box.found,
            "nominal_asked": 0 if nominal is None else nominal.asked,
        },
    }  # fmt: skip
    return made, record


def _queries(split: Split, fuse: NeuralFuse, nominal: LimitedBox | None) -> tuple[Tensor, Tensor]:
    """Return a split's inputs and targets, on the CPU: its labels, or the answers of the model without faults."""
    x = plain_inputs(split, fuse.input_range).cpu()
    if nominal is None:
        return x, split.labels.cpu()
    labels = nominal(x).labels
    if int(labels.min()) < 0:
        raise AnswerError(f"{nominal.box.name}, the model without faults, must answer with numbers: got NaN.")
    return x, labels


def _check_budget(box: LimitedBox, tuning: TuningConfig) -> None:
    """Raise a `ConfigError` if the budget is smaller than the number of queries, and no cache can make up for it."""
    budget = box.limits.budget
    require(
        budget == 0 or budget >= tuning.queries or box.limits.cache is not None,
        f"queries must be within the budget: got queries={tuning.queries} and budget={budget}. Lower --queries.",
    )


class _Search:
    """State of the evolution strategy: an offset of all weights, in units of each tensor's mean magnitude."""

    def __init__(self, fuse: NeuralFuse, tuning: TuningConfig) -> None:
        self.fuse, self.tuning = fuse, tuning
        self.start = {name: tensor.detach() for name, tensor in fuse.named_parameters()}
        self.unit = {name: tensor.abs().mean() for name, tensor in self.start.items()}
        self.offset = torch.zeros(sum(tensor.numel() for tensor in self.start.values()))
        self.optimizer = torch.optim.Adam([self.offset], lr=tuning.lr)

    def step(self, step: int, ask: Callable[[Tensor], Answers], x: Tensor, labels: Tensor) -> list[float]:
        """Take one step along the negative estimated gradient, and return the losses of the sampled modules."""
        tuning = self.tuning
        ways = [
            torch.randn(len(self.offset), generator=generator(tuning.seed, "tuning direction", step, k))
            for k in range(tuning.directions)
        ]
        offsets = [self.offset + sign * tuning.sigma * way for way in ways for sign in (1, -1)]
        with torch.no_grad():
            inputs = torch.cat([self.transformed(offset, x) for offset in offsets])
        answers = ask(inputs)
        losses = losses_of(answers, labels.repeat(len(offsets))).view(len(offsets), -1).mean(1).tolist()
        slopes = [(one - other) / (2 * tuning.sigma) for one, other in zip(losses[::2], losses[1::2], strict=True)]
        self.offset.grad = torch.stack([slope * way for slope, way in zip(slopes, ways, strict=True)]).mean(0)
        self.optimizer.step()
        return losses

    def weights(self, offset: Tensor) -> dict[str, Tensor]:
        """Return the generator's weights at an offset."""
        parts = torch.split(offset, [tensor.numel() for tensor in self.start.values()])
        return {
            name: tensor + self.unit[name] * part.to(tensor.device).view_as(tensor)
            for (name, tensor), part in zip(self.start.items(), parts, strict=True)
        }

    def transformed(self, offset: Tensor, x: Tensor) -> Tensor:
        """Return F(x) at an offset, on the CPU."""
        made: Tensor = functional_call(self.fuse, self.weights(offset), (x.to(self.fuse.scale.device),))
        return made.cpu()

    def module(self) -> NeuralFuse:
        """Return the module at the current offset, its weights quantized as they will be saved."""
        made = copy.deepcopy(self.fuse)
        with torch.no_grad():
            for name, tensor in self.weights(self.offset).items():
                made.get_parameter(name).copy_(tensor)
        scheme = generator_scheme(made, self.fuse.trained.get("generator_bits", 0))
        return made if scheme is None else snap_(made, scheme)  # type: ignore[return-value]


def losses_of(answers: Answers, labels: Tensor) -> Tensor:
    """Return the loss of each answer, float64 (N,): cross-entropy, or 1 for a wrong class if there are no scores."""
    if answers.scores is None:
        return (~answers.right(labels)).double()
    losses = F.cross_entropy(answers.scores.double(), labels, reduction="none")
    return losses.nan_to_num(_WORST, _WORST).clamp_max(_WORST)


def tuning_text(record: Mapping[str, Any]) -> str:
    """Return a record of `tune` as a few lines."""
    interval, run = record["gain_ci95"], record["run"]
    known = "" if interval is None else f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f} over images"
    kept = "the tuned module" if record["kept"] == "tuned" else "the given module, since the gain is not significant"
    return "\n".join(
        [
            f"{record['steps']} steps, {run['asked']} images sent, {run['known']} from the cache",
            f"before {record['before']:6.2f}%  of {record['judged']} validation images",
            f"after  {record['after']:6.2f}%",
            f"gain   {record['gain']:+6.2f}   points{known}; kept: {kept}",
        ]
    )
