"""Export of a module as a graph for other runtimes, checked against the module itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralfuse.errors import MissingExtraError, ParityError, unknown_name
from neuralfuse.files import fingerprint, write_atomically
from neuralfuse.fuse import NeuralFuse
from neuralfuse.seeds import generator

SCHEMA = "neuralfuse/exported/1"
BATCHES = (1, 2, 7)
TOLERANCE = 1e-4  # in units of [-1, 1], where half of one of 256 levels is 4e-3
INPUT, OUTPUT = "x", "y"

Runs = Callable[[Tensor], Tensor]


def export(fuse: NeuralFuse, path: Path, *, to: str = "onnx") -> dict[str, Any]:
    """Write F as a graph from model inputs (N, C, H, W), for any N, to model inputs of the same shape.

    The graph includes the map between the model's own space and the generator's, and the clipping. The file's metadata
    (``neuralfuse``, JSON) holds the value range of the inputs and how the module was trained. The file is kept only if
    it agrees with the module on batches of 1, 2 and 7 images.

    Args:
        fuse: In eval mode, on the CPU.
        path: File to write.
        to: A key of `FORMATS`: ``onnx``, or ``torch`` for a ``torch.export`` program (``torch.export.load``).

    Returns:
        The metadata, and the largest difference per batch size, in units of [-1, 1].

    Raises:
        MissingExtraError: ``to`` is onnx, and ONNX is not installed.
        ParityError: the graph differs from the module.
        OutputError: the file cannot be written.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    about = {
        "schema": SCHEMA,
        "generator": fuse.name,
        "channels": fuse.channels,
        "image_size": list(fuse.image_size),
        "input_range": fuse.input_range.to_config(),
        "trained": fuse.trained,
        "weights": fingerprint(*fuse.state_dict().values()),
    }
    record: dict[str, Any] = {}

    def write(file: Path) -> None:
        runs = FORMATS[to](fuse, file, about)
        differences = {str(size): _difference(fuse, runs, size) for size in BATCHES}
        worst = max(differences.values())
        if not worst <= TOLERANCE:
            raise ParityError(
                f"the graph for {to} must agree with the module to {TOLERANCE:g}: it differs by {worst:g}. Nothing was "
                "written; another version of torch or of the runtime may help."
            )
        record.update(about, format=to, differences=differences, bytes=file.stat().st_size)

    with torch.inference_mode(False), torch.no_grad():
        write_atomically(path, write)
    return record


def _inputs(fuse: NeuralFuse, size: int) -> Tensor:
    """Return random inputs that cover the model's own space."""
    shape = (size, fuse.channels, *fuse.image_size)
    levels = torch.randint(0, 256, shape, generator=generator("export", size), dtype=torch.uint8)
    return fuse.input_range.from_bytes(levels)


def _difference(fuse: NeuralFuse, runs: Runs, size: int) -> float:
    x = _inputs(fuse, size)
    return float((fuse.scale * (runs(x) - fuse(x))).abs().max())


def _onnx(fuse: NeuralFuse, file: Path, about: dict[str, Any]) -> Runs:
    try:
        import onnx  # noqa: PLC0415
        import onnxruntime  # noqa: PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("--to onnx needs ONNX: pip install 'neuralfuse[onnx]'.") from error
    batch = {0: torch.export.Dim("batch", min=1)}
    made: Any = torch.onnx.export(
        fuse, (_inputs(fuse, 2),), dynamo=True, dynamic_shapes=(batch,), input_names=[INPUT], output_names=[OUTPUT],
        verbose=False,
    )  # fmt: skip
    model = made.model_proto
    model.metadata_props.append(onnx.StringStringEntryProto(key="neuralfuse", value=json.dumps(about)))
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def _torch(fuse: NeuralFuse, file: Path, about: dict[str, Any]) -> Runs:
    made = torch.export.export(fuse, (_inputs(fuse, 2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with file.open("wb") as stream:
        torch.export.save(made, stream, extra_files={"neuralfuse": json.dumps(about)})
    with file.open("rb") as stream:
        return torch.export.load(stream).module()


FORMATS: dict[str, Callable[[NeuralFuse, Path, dict[str, Any]], Runs]] = {"onnx": _onnx, "torch": _torch}
