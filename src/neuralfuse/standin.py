"""A stand-in for hardware at low voltage: an MLServer runtime that serves a base model through one faulty chip."""

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
except ImportError:  # `write_settings` runs without MLServer, too
    MLModel = object

INPUT, OUTPUT = "image", "logits"


def write_settings(
    folder: Path, base: Path, faults: dict[str, Any] | None, seed: int, *, name: str = "model", port: int = 8080
) -> None:
    """Write the settings that ``mlserver start FOLDER`` reads: a server on this machine with one model.

    Args:
        folder: Folder to write.
        base: Folder of a trained base model.
        faults: Config of a fault model (see `from_config`); None for a memory without faults.
        seed: Seed of the chip.
        name: Name of the model on the server.
        port: Port for HTTP; the next two are for gRPC and metrics.

    Raises:
        ConfigError: the port is not in 1..65533.
        FileFormatError: ``base`` is not the folder of a base model.
        OutputError: the folder cannot be written.
    """
    model = load_base(base)
    require(1 <= port <= 65533, f"port must be in 1..65533, since the next two are used, too: got port={port}.")
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
    """An MLServer model: a base model read through one chip, as `write_settings` describes it."""

    async def load(self) -> bool:
        """Load the model and make the chip."""
        extra = self.settings.parameters.extra
        model = load_base(Path(extra["base"]))
        deployed = deploy(model.module, scheme=model.scheme, input_range=model.input_range)
        faults = extra["faults"]
        self.model = deployed if faults is None else deployed.perturbed(Chip(from_config(faults), seed=extra["seed"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the logits of a request's images."""
        x = torch.from_numpy(np.array(NumpyCodec.decode_input(payload.inputs[0]), dtype=np.float32))
        with torch.inference_mode():
            logits = self.model(x).numpy()
        output = NumpyCodec.encode_output(OUTPUT, logits)
        return InferenceResponse(model_name=self.name, outputs=[output])
