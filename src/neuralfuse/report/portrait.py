"""A portrait: what a NeuralFuse does to images, classes and answers, as a record that a report draws."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neuralfuse.data import DataSet, Split
from neuralfuse.errors import ConfigError, MissingExtraError, require
from neuralfuse.evaluation import mean
from neuralfuse.faults import Chip, FaultModel
from neuralfuse.files import fingerprint
from neuralfuse.fuse import NeuralFuse, check_same_range
from neuralfuse.memory import Deployed, Perturbed
from neuralfuse.nets import DeployedBase
from neuralfuse.runs import RunInfo
from neuralfuse.scoring import BATCH, accuracy, correct, plain_inputs, transform

SCHEMA = "neuralfuse/portrait/1"
BINS = 60


def make_portrait(
    fuse: NeuralFuse,
    base: DeployedBase,
    data: DataSet,
    faults: FaultModel,
    *,
    chips: int = 10,
    images: int = 600,
    gallery: int = 10,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return the record of what a NeuralFuse does on test images.

    Args:
        fuse: The module, in eval mode.
        base: The base model in its memory.
        data: The data set. Only its test images are used.
        faults: The fault model.
        chips: Number of unseen chips over which the accuracy of a class is averaged. Answers and weights are those on
            the first chip.
        images: Number of test images whose answers are laid out in a plane.
        gallery: Number of classes that are shown by one image each.
        say: Called with the name of each stage.
    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    deployed = base.deployed
    check_same_range(fuse, deployed)
    require(chips >= 1 and images >= 10, f"chips must be at least 1 and images at least 10: got {chips} and {images}.")
    run, the_chips = RunInfo(deployed.memory.device), faults.chips(chips)
    lay_out, half = _plane(), _at_half(faults)
    test = data.test[data.test.order(data.name, "portrait")]
    say("classes")
    classes = _classes(fuse, deployed, test, data.classes, the_chips)
    say("images")
    shown = _gallery(fuse, test, data.classes, gallery)
    say("answers")
    seen = [Chip(one, the_chips[0].seed) for one in (half, faults) if one is not None]
    outputs = _outputs(fuse, deployed, test[torch.arange(min(images, len(test)))], seen, lay_out)
    return {
        "schema": SCHEMA,
        "config": {
            "base": base.to_config(),
            "fuse": {"fingerprint": fingerprint(*fuse.state_dict().values()), "generator": fuse.name, **fuse.trained},
            "data": data.to_config(),
            "faults": faults.to_config(),
            "ber": faults.ber,
            "chips": chips,
            "images": images,
            "gallery": gallery,
        },
        "per_class": classes,
        "gallery": shown,
        "outputs": outputs,
        "weights": _weights(deployed, the_chips[0]),
        "run": run.collect(),
    }


def _classes(
    fuse: NeuralFuse, deployed: Deployed, test: Split, names: Sequence[str], chips: Sequence[Chip]
) -> dict[str, list[Any]]:
    """Return the accuracy on each class in percent: without errors and as a mean over chips, without and with F."""
    x = plain_inputs(test, deployed.input_range)
    inputs = {"": x, "_nf": transform(fuse, x)}
    present = [label for label in range(len(names)) if bool((test.labels == label).any())]

    def by_class(hits: Tensor) -> list[float]:
        return [100 * float(hits[test.labels == label].float().mean()) for label in present]

    found: dict[str, list[Any]] = {"name": [names[label] for label in present]}
    for suffix, own in inputs.items():
        found[f"ca{suffix}"] = by_class(correct(deployed, own, test.labels))
        each = [by_class(correct(deployed.perturbed(chip), own, test.labels)) for chip in chips]
        found[f"pa{suffix}"] = [mean(values) for values in zip(*each, strict=True)]
    return found


def _gallery(fuse: NeuralFuse, test: Split, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return x, G(x) and F(x) for one image per class, as PNG. Where G adds nothing, its image is middle grey."""
    shown = []
    for label in range(min(count, len(names))):
        rows = (test.labels == label).nonzero().flatten()
        if len(rows) == 0:
            continue
        image = test.images[rows[:1]]
        x = fuse.input_range.from_images(image)
        before = fuse.symmetric(x)
        with torch.inference_mode():
            added = fuse.perturbation(before)
        after = (before + added).clamp(-1, 1)
        shown.append(
            {
                "class": names[label],
                "x": _png(before), "g": _png(added), "f": _png(after),
                "moved": float((after - before).abs().mean()) / 2,
            }
        )  # fmt: skip
    return shown


def _png(image: Tensor) -> str:
    """Return an image with values in [-1, 1], (1, C, H, W), as PNG in base64."""
    from PIL import Image  # noqa: PLC0415

    pixels = ((image[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _at_half(faults: FaultModel) -> FaultModel | None:
    """Return the faults at half their rate; None if they exist at one rate only."""
    try:
        return faults.at(faults.ber / 2)
    except ConfigError:
        return None


def _outputs(
    fuse: NeuralFuse, deployed: Deployed, test: Split, chips: Sequence[Chip], lay_out: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Return the logits of each way to run the model, laid out in a plane.

    The ways are without errors and on each chip, without and with F. All are laid out together, so that a place means
    the same in each of them.
    """
    x = plain_inputs(test, deployed.input_range)
    ways: dict[str, Deployed | Perturbed] = {"without errors": deployed}
    ways |= {f"{100 * chip.faults.ber:.3g}% {chip.faults.kind}": deployed.perturbed(chip) for chip in chips}
    logits, panels = [], []
    for name, way in ways.items():
        for inputs, before in ((x, ""), (transform(fuse, x), ", NeuralFuse")):
            with torch.inference_mode():
                own = (
                    torch.cat([way(part) for part in torch.split(inputs, BATCH)])
                    .float()
                    .nan_to_num(0.0, 0.0, 0.0)
                    .cpu()
                )
            right = accuracy(way, inputs, test.labels)
            logits.append(own.log_softmax(1))
            panels.append({"title": f"{name}{before}", "accuracy": right})
    plane = torch.split(lay_out(torch.cat(logits)), len(test))
    points = [[[round(float(x), 2), round(float(y), 2)] for x, y in own.tolist()] for own in plane]
    return {
        "labels": test.labels.tolist(),
        "panels": [{**panel, "points": own} for panel, own in zip(panels, points, strict=True)],
    }


def _plane() -> Callable[[Tensor], Tensor]:
    """Return a function that lays vectors out in a plane by t-SNE."""
    try:
        from sklearn.manifold import TSNE  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("a portrait needs scikit-learn: pip install 'neuralfuse[report]'.") from error

    def lay_out(vectors: Tensor) -> Tensor:
        made = TSNE(n_components=2, init="pca", perplexity=min(30, len(vectors) // 4), random_state=0)
        return torch.from_numpy(made.fit_transform(vectors.clamp(min=-20).numpy()))

    return lay_out


def _weights(deployed: Deployed, chip: Chip) -> dict[str, Any]:
    """Return histograms of the weights, as stored and as read through a chip.

    Each weight is relative to the largest one of its tensor.
    """
    memory = deployed.memory
    reading = memory.read(chip)
    largest = torch.ones_like(memory.values)
    for part in memory.parts:
        own = slice(part.region.start, part.region.start + part.region.words)
        largest[own] = memory.values[own].abs().max().clamp(min=1e-12)
    faulty = memory.values.index_copy(0, reading.index, reading.values.nan_to_num(0.0))
    edges = torch.linspace(-1.05, 1.05, BINS + 1)
    counted = {
        name: torch.histogram((values / largest).clamp(-1.04, 1.04).cpu(), edges).hist.long().tolist()
        for name, values in (("clean", memory.values), ("faulty", faulty))
    }
    return {"edges": [round(float(edge), 4) for edge in edges], **counted, "changed": len(reading.index)}
