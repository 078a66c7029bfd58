"""The commands `serve`, a gateway, and `chip serve`, a stand-in for the server behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from neuralfuse.cli.chip import chip_app
from neuralfuse.cli.common import Common, say, token
from neuralfuse.cli.faults import FaultOptions
from neuralfuse.errors import MissingExtraError

_FLAT = Parameter(name="*")
_COMMON, _FAULTS = Common(), FaultOptions()


def serve(
    fuse: Path,
    /,
    *,
    upstream: str,
    model: tuple[str, ...] = (),
    input_name: str | None = None,
    layout: Literal["nchw", "nhwc"] = "nchw",
    host: str = "127.0.0.1",
    port: int = 8010,
    max_batch: int = 64,
    max_wait: float = 0.002,
    in_flight: int = 128,
    timeout: float = 30.0,
    max_body: int = 16 * 2**20,
    certificate: Path | None = None,
    key: Path | None = None,
    grpc_upstream: str | None = None,
    grpc_port: int = 8011,
    common: Annotated[Common, _FLAT] = _COMMON,
) -> None:
    """Put a NeuralFuse in front of an inference server (Open Inference Protocol, as Triton, KServe and MLServer speak).

    Images in requests for answers are transformed; everything else passes untouched. Needs: pip install
    'neuralfuse[serve]'. Clients must send the token in NEURALFUSE_TOKEN, if it is set; the one in
    NEURALFUSE_UPSTREAM_TOKEN is sent to the server behind. GET /metrics is for Prometheus.

    Example: neuralfuse serve runs/fuse --upstream http://127.0.0.1:8080

    Parameters
    ----------
    fuse
        Folder of a trained NeuralFuse.
    upstream
        Address of the server behind, without /v2.
    model
        A model that is protected; repeat it for several. By default all; requests to others pass untouched.
    input_name
        Name of the image input; by default the only one that has the images' shape.
    layout
        Order of the images' axes.
    host
        Address to listen on. By default only this machine can reach it.
    port
        Port to listen on; 0 for any that is free.
    max_batch
        Images that are transformed at once.
    max_wait
        Seconds that an image waits, at most, for those of other requests that have come.
    in_flight
        Requests that are worked on at a time; further ones get 503.
    timeout
        Seconds for a request, from its head to the answer of the server behind (504).
    max_body
        Bytes of a request's body, unpacked; larger ones get 413.
    certificate
        PEM file, for TLS.
    key
        PEM file of its private key.
    grpc_upstream
        Address of the server's gRPC service, grpc[s]://HOST:PORT, to answer gRPC as well (pip install
        'neuralfuse[grpc]').
    grpc_port
        Port to listen on for gRPC.
    """

    try:
        from neuralfuse.serve import Settings  # noqa: PLC0415
        from neuralfuse.serve import serve as run  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the gateway needs its libraries: pip install 'neuralfuse[serve]'.") from error
    settings = Settings(
        upstream=upstream, models=model, input_name=input_name, layout=layout, host=host, port=port,
        max_batch=max_batch, max_wait=max_wait, in_flight=in_flight, timeout=timeout, max_body=max_body,
        token=token("NEURALFUSE_TOKEN"), upstream_token=token("NEURALFUSE_UPSTREAM_TOKEN"),
        certificate=certificate, key=key, grpc_upstream=grpc_upstream, grpc_port=grpc_port,
    )  # fmt: skip
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
    """Write a folder from which MLServer serves a base model through one chip, or, without a rate, without faults.

    A stand-in for hardware at low voltage, to try a gateway with. MLServer wants an environment of its own, with
    neuralfuse in it too: python -m venv server; server/bin/pip install neuralfuse mlserver==1.7.1 "uvloop<0.22".

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
        For HTTP; gRPC and metrics take the next two.
    """
    from neuralfuse.standin import write_settings  # noqa: PLC0415

    wanted = None if faults == _FAULTS else faults.model().to_config()
    write_settings(out, base, wanted, seed, name=name, port=port)
    address = f"http://127.0.0.1:{port}/v2/models/{name}"
    record = {"out": str(out), "faults": wanted, "seed": seed, "address": address}
    common.show(record, f"Wrote {out}. Start it with: mlserver start {out}. Then it answers at {address}.")
