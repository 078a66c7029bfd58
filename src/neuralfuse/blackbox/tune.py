"""Fitting a NeuralFuse to a model that one can only ask: an evolution strategy, within a number of questions."""

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
from neuralfuse.blackbox.careful import Careful
from neuralfuse.blackbox.judge import check_fits
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
_WORST = 20.0  # loss of an image at most, and of scores that are no numbers, which a chip may answer with


def tune(
    fuse: NeuralFuse,
    box: Careful,
    data: DataSet,
    tuning: TuningConfig | None = None,
    *,
    images: int = 0,
    nominal: Careful | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[NeuralFuse, dict[str, Any]]:
    """Return a NeuralFuse fitted to a model by its answers alone, and the record of how.

    The gradient of the loss with respect to all of the generator's weights is estimated from pairs of modules that lie
    opposite each other at random around the present one (evolution strategy with antithetic samples; Salimans et al.,
    arXiv 1703.03864), each asked about the same images. The loss is the cross-entropy where the model tells scores, and
    the share of wrong answers where it tells classes. Afterwards module and result are compared on other images; unless
    the 95% interval of the gain lies above 0, it is the module as it was.

    All questions follow from ``seed``: with a cache, the same call after an interruption asks none of them again.

    Args:
        fuse: In eval mode; it stays as it is.
        box: The model; one chip, whatever faults it has.
        data: Its training images are learned from, its validation images judge.
        tuning: How.
        images: Training images to learn from, drawn by a name; 0 for all.
        nominal: The same model without faults: its answers are learned from and judged by in the place of labels, and
            not counted in ``queries``. Nor are tries of a question that failed.
        say: Told of every tenth of the steps.

    Raises:
        ConfigError: module and images do not fit, or there are fewer images than asked for.
        NeuralFuseError: see `Careful`.
    """
    tuning, run = tuning or TuningConfig(), RunInfo()
    check_fits(fuse, data.train.images, fuse.input_range)
    learn = training_images(data, images)
    judge = data.validation[data.validation.order(data.name, "black box")[: tuning.judged]]
    steps, search, history = tuning.steps(len(judge)), _Search(fuse, tuning), []
    _check_budget(box, tuning)
    for step in range(steps):
        places = torch.randint(len(learn), (tuning.step_images,), generator=generator(tuning.seed, "images", step))
        x, right = _questions(learn[places.to(learn.labels.device)], fuse, nominal)
        history.append(mean(search.step(step, box, x, right)))
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"step {step + 1} of {steps}: loss {history[-1]:.3f}, {box.asked} images asked")
    tuned = search.module()
    x, right = _questions(judge, fuse, nominal)
    hits = [box(transform(one, x.to(fuse.scale.device))).right(right).double().mul(100) for one in (fuse, tuned)]
    before, after = (one.tolist() for one in hits)
    gains = [two - one for one, two in zip(before, after, strict=True)]
    interval = t_interval(gains)
    better = interval is not None and interval[0] > 0
    config = {
        **asdict(tuning),
        "images": len(learn),
        "box": box.box.name,
        **box.box.how,
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


def _questions(split: Split, fuse: NeuralFuse, nominal: Careful | None) -> tuple[Tensor, Tensor]:
    """Return a split's inputs, and what is right: its labels, or what the model without faults answers; on the CPU."""
    x = plain_inputs(split, fuse.input_range).cpu()
    if nominal is None:
        return x, split.labels.cpu()
    labels = nominal(x).labels
    if int(labels.min()) < 0:
        raise AnswerError(f"{nominal.box.name}, the model without faults, must answer with numbers: got NaN.")
    return x, labels


def _check_budget(box: Careful, tuning: TuningConfig) -> None:
    """Raise a `ConfigError` where all that may be asked is less than will be; answers in a cache may make up for it."""
    budget = box.limits.budget
    require(
        budget == 0 or budget >= tuning.queries or box.limits.cache is not None,
        f"queries must be within the budget: got queries={tuning.queries} and budget={budget}. Lower --queries.",
    )


class _Search:
    """Where an evolution strategy stands: a move of all weights, in units of each tensor's mean magnitude."""

    def __init__(self, fuse: NeuralFuse, tuning: TuningConfig) -> None:
        self.fuse, self.tuning = fuse, tuning
        self.start = {name: tensor.detach() for name, tensor in fuse.named_parameters()}
        self.unit = {name: tensor.abs().mean() for name, tensor in self.start.items()}
        self.move = torch.zeros(sum(tensor.numel() for tensor in self.start.values()))
        self.optimizer = torch.optim.Adam([self.move], lr=tuning.lr)

    def step(self, step: int, ask: Callable[[Tensor], Answers], x: Tensor, labels: Tensor) -> list[float]:
        """Go one step against the estimated gradient; return the losses of the modules that were asked about."""
        tuning = self.tuning
        ways = [
            torch.randn(len(self.move), generator=generator(tuning.seed, "tuning direction", step, k))
            for k in range(tuning.directions)
        ]
        moves = [self.move + sign * tuning.sigma * way for way in ways for sign in (1, -1)]
        with torch.no_grad():
            inputs = torch.cat([self.transformed(move, x) for move in moves])
        answers = ask(inputs)
        losses = losses_of(answers, labels.repeat(len(moves))).view(len(moves), -1).mean(1).tolist()
        slopes = [(one - other) / (2 * tuning.sigma) for one, other in zip(losses[::2], losses[1::2], strict=True)]
        self.move.grad = torch.stack([slope * way for slope, way in zip(slopes, ways, strict=True)]).mean(0)
        self.optimizer.step()
        return losses

    def weights(self, move: Tensor) -> dict[str, Tensor]:
        """Return the generator's weights after a move."""
        parts = torch.split(move, [tensor.numel() for tensor in self.start.values()])
        return {
            name: tensor + self.unit[name] * part.to(tensor.device).view_as(tensor)
            for (name, tensor), part in zip(self.start.items(), parts, strict=True)
        }

    def transformed(self, move: Tensor, x: Tensor) -> Tensor:
        """Return F(x) after a move, on the CPU."""
        made: Tensor = functional_call(self.fuse, self.weights(move), (x.to(self.fuse.scale.device),))
        return made.cpu()

    def module(self) -> NeuralFuse:
        """Return the module after the present move, its weights as they can be saved."""
        made = copy.deepcopy(self.fuse)
        with torch.no_grad():
            for name, tensor in self.weights(self.move).items():
                made.get_parameter(name).copy_(tensor)
        scheme = generator_scheme(made, self.fuse.trained.get("generator_bits", 0))
        return made if scheme is None else snap_(made, scheme)  # type: ignore[return-value]


def losses_of(answers: Answers, labels: Tensor) -> Tensor:
    """Return each answer's loss, float64 (N,): cross-entropy, or 1 for a wrong one where only classes were told."""
    if answers.scores is None:
        return (~answers.right(labels)).double()
    losses = F.cross_entropy(answers.scores.double(), labels, reduction="none")
    return losses.nan_to_num(_WORST, _WORST).clamp_max(_WORST)


def tuning_summary(record: Mapping[str, Any]) -> str:
    """Return the record in a few lines."""
    interval, run = record["gain_ci95"], record["run"]
    known = "" if interval is None else f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f} over images"
    kept = "the module tuned" if record["kept"] == "tuned" else "the module as it was, since none is shown to be better"
    return "\n".join(
        [
            f"{record['steps']} steps, {run['asked']} images asked, {run['known']} known before",
            f"before {record['before']:6.2f}%  of {record['judged']} validation images",
            f"after  {record['after']:6.2f}%",
            f"gain   {record['gain']:+6.2f}   points{known}; kept: {kept}",
        ]
    )
