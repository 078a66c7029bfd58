"""Which of several NeuralFuses suits a model that one can only ask: the worse half goes, the rest are asked more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from neuralfuse.blackbox.careful import Careful
from neuralfuse.blackbox.judge import check_fits
from neuralfuse.data import DataSet
from neuralfuse.errors import require
from neuralfuse.evaluation import mean, t_interval
from neuralfuse.fuse import NeuralFuse
from neuralfuse.runs import RunInfo
from neuralfuse.scoring import plain_inputs, transform

SCHEMA = "neuralfuse/choice/1"
NONE = "none"
FEWEST = 16  # images of the first round


def choose(
    fuses: Mapping[str, NeuralFuse],
    box: Careful,
    data: DataSet,
    *,
    images: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the record of a choice among NeuralFuses by a model's answers to validation images.

    Successive halving (Jamieson and Talwalkar, AISTATS 2016): each round asks about twice as many images as the one
    before, those among them, and the better half goes on. The last one is compared with no NeuralFuse on all images,
    which is best if it answers as well. A choice among many looks a little better than it is: judge it on test images.

    Args:
        fuses: By name, in eval mode, all of one input range.
        box: The model.
        data: Its validation images are asked about.
        images: How many at most; 0 for all.
        say: Told of every round.

    Raises:
        ConfigError: modules and images do not fit.
        NeuralFuseError: see `Careful`.
    """
    require(len(fuses) > 0, "there must be a NeuralFuse to choose: got none.")
    require(NONE not in fuses, f"{NONE} must not be the name of a NeuralFuse: it stands for no NeuralFuse.")
    first = next(iter(fuses.values()))
    for fuse in fuses.values():
        check_fits(fuse, data.validation.images, first.input_range)
    require(0 <= images <= len(data.validation), f"images must be in 0..{len(data.validation)}: got images={images}.")
    run, most = RunInfo(), images or len(data.validation)
    chosen = data.validation[data.validation.order(data.name, "choosing")[:most]]
    x, labels = plain_inputs(chosen, first.input_range), chosen.labels.cpu()

    def right(name: str, count: int) -> Tensor:
        inputs = x[:count]
        if name != NONE:
            fuse = fuses[name]
            inputs = transform(fuse, inputs.to(fuse.scale.device)).cpu()
        return box(inputs).right(labels[:count])

    rounds, left = [], list(fuses)
    for count in sizes(len(left), most):
        hits = {name: 100 * float(right(name, count).double().mean()) for name in left}
        left = sorted(left, key=lambda name: -hits[name])  # stable: of equals the first stays
        rounds.append({"images": count, "accuracy": {name: hits[name] for name in left}})
        say(f"{count} images: " + ", ".join(f"{name} {hits[name]:.1f}" for name in left))
        left = left[: math.ceil(len(left) / 2)]
    best_fuse = left[0]
    pairs = zip(right(best_fuse, most).tolist(), right(NONE, most).tolist(), strict=True)
    gains = [100.0 * (one - other) for one, other in pairs]
    interval = t_interval(gains)
    return {
        "schema": SCHEMA,
        "config": {
            "box": box.box.name,
            **box.box.how,
            "candidates": {name: fuse.trained for name, fuse in fuses.items()},
            "data": data.to_config(),
            "images": most,
        },
        "rounds": rounds,
        "best": best_fuse if mean(gains) > 0 else NONE,
        "best_fuse": best_fuse,
        "gain": mean(gains),
        "gain_ci95": None if interval is None else list(interval),
        "run": {**run.collect(), "asked": box.asked, "known": box.found},
    }


def sizes(candidates: int, most: int) -> list[int]:
    """Return the images of each round: doubling, the last round all of them, one round a halving."""
    rounds = max(1, math.ceil(math.log2(candidates)))
    return [max(min(most, FEWEST), most // 2**step) for step in reversed(range(rounds))]


def choice_summary(record: Mapping[str, Any]) -> str:
    """Return the record in a few lines."""
    lines: list[str] = []
    for one in record["rounds"]:
        found: Sequence[tuple[str, float]] = list(one["accuracy"].items())
        lines.append(f"{one['images']:5} images: " + ", ".join(f"{name} {value:.1f}%" for name, value in found))
    interval = record["gain_ci95"]
    known = "" if interval is None else f", 95% interval {interval[0]:+.1f} to {interval[1]:+.1f} over images"
    over = f"{record['best_fuse']}, {record['gain']:+.1f} points over no NeuralFuse{known}"
    lines.append(f"best: {over}" if record["best"] != NONE else f"best: no NeuralFuse; of them {over}")
    lines.append(f"{record['run']['asked']} images asked, {record['run']['known']} known before")
    return "\n".join(lines)
