"""A stand-in for a server at low voltage: a runtime for MLServer that answers through one chip's faulty memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralfuse.errors import require
from neuralfuse.faults import Chip, from_config
from neuralfuse.files import write_json
from neuralfuse.memory import deploy
from neuralfuse.nets import load_base

try:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse
except ImportError:  # the settings are written where there is no MLServer
    MLModel = object

INPUT, OUTPUT = "image", "logits"


def write_settings(
    folder: Path, base: Path, faults: dict[str, Any] | None, seed: int, *, name: str = "model", port: int = 8080
) -> None:
    """Write what ``mlserver start FOLDER`` reads: a server on this machine with one model.

    Args:
        folder: To write.
        base: Folder of a trained base model.
        faults: A fault model's description; None for a memory without faults.
        seed: Of the chip.
        name: Of the model.
        port: For HTTP; gRPC and metrics take the next two.

    Raises:
        FileFormatError: the folder is not one of a base model.
        OutputError: the folder cannot be written.
    """
    model = load_base(base)
    require(1 <= port <= 65533, f"port must be in 1..65533, for it and the next two: got port={port}.")
    height, width = model.image_size
    server = {"host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    write_json(folder / "settings.json", {**server, "parallel_workers": 0})
    write_json(
        folder / "model-settings.json",
        {
            "name": name,
            "implementation": "neuralfuse.standin.FaultyModel",
            "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, model.channels, height, width]}],
            "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, model.classes]}],
            "parameters": {"extra": {"base": str(base.absolute()), "faults": faults, "seed": seed}},
        },
    )


class FaultyModel(MLModel):  # type: ignore[misc, unused-ignore]
    """A base model whose weights are read through one chip; set up by `write_settings`."""

    async def load(self) -> bool:
        """Read the model and make the chip."""
        extra = self.settings.parameters.extra
        model = load_base(Path(extra["base"]))
        deployed = deploy(model.module, scheme=model.scheme, input_range=model.input_range)
        faults = extra["faults"]
        self.model = deployed if faults is None else deployed.perturbed(Chip(from_config(faults), seed=extra["seed"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer with logits."""
        x = torch.from_numpy(np.array(NumpyCodec.decode_input(payload.inputs[0]), dtype=np.float32))
        with torch.inference_mode():
            logits = self.model(x).numpy()
        output = NumpyCodec.encode_output(OUTPUT, logits)
        return InferenceResponse(model_name=self.name, outputs=[output])
