"""The commands `serve` (a gateway) and `chip serve` (a stand-in for the server behind it)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, default_name_transform

from neuralfuse.cli.chip import chip_app
from neuralfuse.cli.common import Common, say, token
from neuralfuse.cli.faults import FaultOptions
from neuralfuse.errors import MissingExtraError
from neuralfuse.serve import Settings


def _option_name(name: str) -> str:
    """Return the name of the option for a field of `Settings`: one --model per model."""
    return default_name_transform("model" if name == "models" else name)


_FLAT = Parameter(name="*")
_SETTINGS = Parameter(name="*", parse="^(?!.*token)", name_transform=_option_name)  # tokens are no options
_COMMON, _FAULTS = Common(), FaultOptions()


def serve(
    fuse: Path,
    /,
    *,
    settings: Annotated[Settings, _SETTINGS],
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Put a NeuralFuse in front of an inference server (Open Inference Protocol: Triton, KServe, MLServer).

    The gateway transforms the images of inference requests; everything else passes unchanged. It needs: pip install
    'neuralfuse[serve]'. If NEURALFUSE_TOKEN is set, clients must send it as bearer token. The gateway sends the token
    in NEURALFUSE_UPSTREAM_TOKEN to the upstream server. GET /metrics returns metrics for Prometheus.

    Example: neuralfuse serve runs/fuse --upstream http://127.0.0.1:8080

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse.
    """

    try:
        from neuralfuse.serve.run import serve as run  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the gateway needs its libraries: pip install 'neuralfuse[serve]'.") from error
    settings = replace(settings, token=token("NEURALFUSE_TOKEN"), upstream_token=token("NEURALFUSE_UPSTREAM_TOKEN"))
    run(common.open_fuse(fuse, common.set_up()), settings, say=say)


@chip_app.command(name="serve")
def serve_chip(
    *,
    base: Path,
    out: Path,
    seed: int = 0,
    name: str = "model",
    port: int = 8080,
    faults: Annotated[FaultOptions, _FLAT] = _FAULTS,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Write a folder from which MLServer serves a base model through one chip; without --ber, without faults.

    It stands in for hardware at low voltage, to try a gateway with. MLServer needs an environment of its own that
    contains neuralfuse, too: python -m venv server; server/bin/pip install neuralfuse mlserver==1.7.1 "uvloop<0.22".

    Example: neuralfuse chip serve --base runs/base --faults stuck --ber 0.01 --seed 7 --out served

    Parameters
    ----------
    base
        Folder of a base model, written by train-base.
    out
        Folder to write.
    seed
        Seed of the chip.
    name
        Name of the model on the server.
    port
        Port for HTTP; the next two are for gRPC and metrics.
    """
    from neuralfuse.standin import write_settings  # noqa: PLC0415

    wanted = None if faults == _FAULTS else faults.model().to_config()
    write_settings(out, base, wanted, seed, name=name, port=port)
    address = f"http://127.0.0.1:{port}/v2/models/{name}"
    record = {"out": str(out), "faults": wanted, "seed": seed, "address": address}
    common.show(record, f"Wrote {out}. Start it with: mlserver start {out}. Then it answers at {address}.")
