"""Choosing among several NeuralFuses by successive halving on a black-box model's answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from neuralfuse.blackbox.judge import check_fits
from neuralfuse.blackbox.limited import LimitedBox
from neuralfuse.data import DataSet
from neuralfuse.errors import require
from neuralfuse.evaluation import mean, t_interval
from neuralfuse.fuse import NeuralFuse
from neuralfuse.runs import RunInfo
from neuralfuse.scoring import plain_inputs, transform

SCHEMA = "neuralfuse/choice/1"
NONE = "none"
FEWEST = 16  # images in the first round


def choose(
    fuses: Mapping[str, NeuralFuse],
    box: LimitedBox,
    data: DataSet,
    *,
    images: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the record of a choice among NeuralFuses by a model's accuracy on validation images.

    Each round uses about twice as many images as the round before, among them the same ones, and keeps the better half
    of the modules. The last module is compared with no NeuralFuse on all images. If it gains nothing, ``best`` is
    ``none``. The best of many modules looks better than it is: measure it again on test images.

    Args:
        fuses: NeuralFuses by name, in eval mode, all with the same input range.
        box: The model.
        data: Its validation images are the queries.
        images: Number of validation images, a fixed random subset; 0 for all.
        say: Called with a line after each round.

    Raises:
        ConfigError: modules and images do not fit together, or there are fewer images than asked for.
        NeuralFuseError: a query failed, see `LimitedBox`.
    Source:
        Successive halving (Jamieson and Talwalkar, AISTATS 2016).
    """
    require(len(fuses) > 0, "at least one NeuralFuse must be given: got none.")
    require(NONE not in fuses, f"{NONE} must not be the name of a NeuralFuse: it means no NeuralFuse.")
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
    for count in round_sizes(len(left), most):
        hits = {name: 100 * float(right(name, count).double().mean()) for name in left}
        left = sorted(left, key=lambda name: -hits[name])  # stable: of equal ones the first stays
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
            **box.box.options,
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


def round_sizes(candidates: int, most: int) -> list[int]:
    """Return the number of images in each round: doubled per halving, all of them in the last round."""
    rounds = max(1, math.ceil(math.log2(candidates)))
    return [max(min(most, FEWEST), most // 2**step) for step in reversed(range(rounds))]


def choice_text(record: Mapping[str, Any]) -> str:
    """Return a record of `choose` as a few lines."""
    lines: list[str] = []
    for one in record["rounds"]:
        found: Sequence[tuple[str, float]] = list(one["accuracy"].items())
        lines.append(f"{one['images']:5} images: " + ", ".join(f"{name} {value:.1f}%" for name, value in found))
    interval = record["gain_ci95"]
    known = "" if interval is None else f", 95% interval {interval[0]:+.1f} to {interval[1]:+.1f} over images"
    over = f"{record['best_fuse']}, {record['gain']:+.1f} points over no NeuralFuse{known}"
    lines.append(f"best: {over}" if record["best"] != NONE else f"best: no NeuralFuse; best NeuralFuse: {over}")
    lines.append(f"{record['run']['asked']} images sent, {record['run']['known']} from the cache")
    return "\n".join(lines)
