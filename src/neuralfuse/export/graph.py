"""The module as a graph that other runtimes read, compared with the module itself before it is kept."""

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
MOST = 1e-4  # of [-1, 1]: half a level of 256 is forty times as much
INPUT, OUTPUT = "x", "y"

Runs = Callable[[Tensor], Tensor]


def export(fuse: NeuralFuse, path: Path, *, to: str = "onnx") -> dict[str, Any]:
    """Write F as a graph from model inputs (N, C, H, W), any N, to model inputs of the same shape.

    The map between the model's own space and the generator's is inside the graph, the clipping too. What the inputs
    are made of, and what the module was trained against, are in the file's metadata (``neuralfuse``, JSON). The file
    is kept only if it agrees with the module on batches of 1, 2 and 7 images.

    Args:
        fuse: In eval mode, on the CPU.
        path: File to write.
        to: A key of `FORMATS`: ``onnx``, or ``torch`` for a ``torch.export`` program (``torch.export.load``).

    Returns:
        What was written, and the largest difference found, in units of [-1, 1].

    Raises:
        MissingExtraError: ONNX is not installed.
        ParityError: the graph computes something else.
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
        if not worst <= MOST:
            raise ParityError(
                f"the graph for {to} must agree with the module to {MOST:g}: it differs by {worst:g}. Nothing was "
                "written; another version of torch or of the runtime may help."
            )
        record.update(about, format=to, differences=differences, bytes=file.stat().st_size)

    with torch.inference_mode(False), torch.no_grad():
        write_atomically(path, write)
    return record


def _inputs(fuse: NeuralFuse, size: int) -> Tensor:
    """Return random inputs of the model's own space, all of it."""
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
