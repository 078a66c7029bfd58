"""The accuracy of a black-box model with and without a NeuralFuse in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from neuralfuse.blackbox.limited import LimitedBox
from neuralfuse.data import DataSet
from neuralfuse.errors import ConfigError, require
from neuralfuse.evaluation import mean, t_interval
from neuralfuse.files import fingerprint
from neuralfuse.fuse import NeuralFuse
from neuralfuse.ranges import InputRange
from neuralfuse.runs import RunInfo
from neuralfuse.scoring import plain_inputs, transform

SCHEMA = "neuralfuse/black-box/1"


def judge(
    fuse: NeuralFuse | None,
    box: LimitedBox,
    data: DataSet,
    *,
    nominal: LimitedBox | None = None,
    input_range: InputRange | None = None,
    images: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the record of a model's accuracy with and without a NeuralFuse in front of it.

    The model is one chip with its own faults. So the interval of the paired difference (Student t) is over images.

    Args:
        fuse: In eval mode; None to query the model alone.
        box: The model.
        data: Its test images are the queries.
        nominal: The same model without faults, if it can be queried.
        input_range: Value range of the model's inputs; by default the NeuralFuse's.
        images: Number of test images, a fixed random subset; 0 for all.
        say: Called with a line before each series of queries.

    Raises:
        ConfigError: module, images and range do not fit together, or there are fewer images than asked for.
        NeuralFuseError: a query failed, see `LimitedBox`.
    """
    own = fuse.input_range if fuse is not None else input_range or InputRange()
    if fuse is not None:
        check_fits(fuse, data.test.images, input_range or own)
    require(0 <= images <= len(data.test), f"images must be in 0..{len(data.test)}: got images={images}.")
    run = RunInfo()
    rows = data.test.order(data.name, "black box")[: images or len(data.test)].sort().values
    test = data.test[rows]
    plain = plain_inputs(test, own)
    transformed = None if fuse is None else transform(fuse, plain.to(fuse.scale.device)).cpu()
    labels = test.labels.cpu()
    hits: dict[str, list[float]] = {}  # for each image, 0 or 100
    for key, model in (("pa", box), ("ca", nominal)):
        for name, x in ((key, plain), (f"{key}_nf", transformed)):
            if model is not None and x is not None:
                say(f"querying {model.box.name} with {len(x)} images{', with NeuralFuse' * name.endswith('nf')}")
                hits[name] = model(x).right(labels).double().mul(100).tolist()
    gains = [after - before for before, after in zip(hits["pa"], hits.get("pa_nf", hits["pa"]), strict=True)]
    interval = t_interval(gains)
    return {
        "schema": SCHEMA,
        "config": {
            "box": box.box.name,
            **box.box.options,
            "nominal": None if nominal is None else nominal.box.name,
            "kind": box.kind,
            "fuse": None if fuse is None else {**fuse.trained, "generator": fuse.name, "weights": _weights(fuse)},
            "input_range": own.to_config(),
            "data": data.to_config(),
            "images": len(test),
        },
        **{name: mean(hits[name]) if name in hits else None for name in ("ca", "pa", "ca_nf", "pa_nf")},
        "rp": None if fuse is None else mean(gains),
        "rp_ci95": None if fuse is None or interval is None else list(interval),
        "images": len(test),
        "run": {
            **run.collect(),
            "asked": box.asked + (0 if nominal is None else nominal.asked),
            "known": box.found + (0 if nominal is None else nominal.found),
            "tried_again": box.tried_again + (0 if nominal is None else nominal.tried_again),
        },
    }


def check_fits(fuse: NeuralFuse, images: Tensor, input_range: InputRange) -> None:
    """Raise a `ConfigError` unless a module takes such images (N, C, H, W) and such inputs."""
    if fuse.input_range != input_range:
        raise ConfigError(
            f"NeuralFuse and model must have the same input range: got {fuse.input_range} and {input_range}."
        )
    wanted, got = (fuse.channels, *fuse.image_size), tuple(images.shape[1:])
    if wanted != got:
        raise ConfigError(f"the images must have the shape that the NeuralFuse was made for, {wanted}: got {got}.")


def _weights(fuse: NeuralFuse) -> str:
    return fingerprint(*fuse.state_dict().values())


def answers_text(record: Mapping[str, Any]) -> str:
    """Return a record of `judge` as a few aligned lines."""
    lines = [f"{record['config']['box']}, {record['images']} images"]
    for name, text in (
        ("ca", "without faults"), ("pa", "as it is"), ("ca_nf", "with NeuralFuse, without faults"),
        ("pa_nf", "with NeuralFuse"),
    ):  # fmt: skip
        if record[name] is not None:
            title = name.upper().replace("_NF", "(NF)")
            lines.append(f"{title:8} {record[name]:6.2f}%  {text}")
    if record["rp"] is not None:
        interval = record["rp_ci95"]
        known = "" if interval is None else f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f} over images"
        lines.append(f"{'RP':8} {record['rp']:+6.2f}   points recovered{known}")
    run = record["run"]
    lines.append(f"{run['asked']} images sent, {run['known']} from the cache, {run['tried_again']} requests retried")
    return "\n".join(lines)
