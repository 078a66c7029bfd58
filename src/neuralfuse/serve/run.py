"""A gateway as a process."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn

from neuralfuse.errors import ConfigError, MissingExtraError
from neuralfuse.fuse import NeuralFuse
from neuralfuse.serve.gateway import gateway
from neuralfuse.serve.settings import Settings

_REST = 75
"""Seconds that a connection may rest: longer than clients keep theirs, or one is closed just as it is used again."""


def serve(fuse: NeuralFuse, settings: Settings, *, say: Callable[[str], None] = lambda text: None) -> None:
    """Serve until a SIGTERM or Ctrl-C: then no request is taken any more, and those in flight are answered.

    Args:
        fuse: In eval mode, on the device where it is to run.
        settings: What and where.
        say: Told the address.

    Raises:
        ConfigError: it cannot listen there, or the certificate cannot be used.
    """
    try:
        config = uvicorn.Config(
            gateway(fuse, settings), log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=int(settings.timeout) + 1, timeout_keep_alive=_REST,
            ssl_certfile=settings.certificate, ssl_keyfile=settings.key,
        )  # fmt: skip
        config.load()
    except OSError as error:
        raise ConfigError(f"--certificate and --key must be PEM files that fit: {error}.") from error
    if settings.grpc_upstream is not None:
        _check_rpc(settings)
    listening = _listening(settings.host, settings.port)
    scheme = "http" if settings.certificate is None else "https"
    host, port = listening.getsockname()[:2]
    say(f"serving on {scheme}://{host}:{port}, in front of {settings.upstream}")
    if settings.grpc_upstream is not None:
        say(f"gRPC on {settings.host}:{settings.grpc_port}, in front of {settings.grpc_upstream}")
    signal.signal(signal.SIGTERM, lambda *args: None)  # uvicorn raises it again once all is answered
    with listening:
        uvicorn.Server(config).run([listening])


def _check_rpc(settings: Settings) -> None:
    """Raise an error where the gRPC door cannot be opened."""
    try:
        import neuralfuse.serve.rpc  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("gRPC needs its libraries: pip install 'neuralfuse[grpc]'.") from error
    _listening(settings.host, settings.grpc_port).close()


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; made for TCP by name, or asyncio would leave Nagle's delay of 40 ms in answers."""
    made: socket.socket | None = None
    try:
        options = {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP, "flags": socket.AI_PASSIVE}
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, **options)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        if made is not None:
            made.close()
        where = f"{host}:{port}: {error.strerror or error}"
        raise ConfigError(f"--host and --port must be free to listen on: {where}.") from error
    return made
