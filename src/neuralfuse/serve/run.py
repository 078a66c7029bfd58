"""A gateway as a process."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from neuralfuse.errors import ConfigError, MissingExtraError
from neuralfuse.fuse import NeuralFuse
from neuralfuse.serve.gateway import gateway
from neuralfuse.serve.settings import Settings, place_of

_REST = 75
"""Seconds that a connection may rest: longer than clients keep theirs, or one is closed just as it is used again."""

_HEAD = 30
"""Seconds for the head of a request to come."""


def serve(fuse: NeuralFuse, settings: Settings, *, say: Callable[[str], None] = lambda text: None) -> None:
    """Serve until a SIGTERM or Ctrl-C: then no request is taken any more, and those in flight are answered.

    Args:
        fuse: In eval mode, on the device where it is to run.
        settings: What and where.
        say: Told the address.

    Raises:
        ConfigError: it cannot listen there, or the certificate cannot be used.
    """
    server = server_of(fuse, settings)
    if settings.grpc_upstream is not None:
        _check_rpc(settings)
    listening = listen(settings.host, settings.port)
    scheme = "http" if settings.certificate is None else "https"
    host, port = listening.getsockname()[:2]
    say(f"serving on {scheme}://{place_of(host, port)}, in front of {settings.upstream}")
    if settings.grpc_upstream is not None:
        say(f"gRPC on {place_of(settings.host, settings.grpc_port)}, in front of {settings.grpc_upstream}")
    signal.signal(signal.SIGTERM, lambda *args: None)  # uvicorn raises it again once all is answered
    with listening:
        server.run([listening])


def server_of(fuse: NeuralFuse, settings: Settings) -> uvicorn.Server:
    """Return what answers HTTP on sockets.

    Raises:
        ConfigError: the certificate cannot be used.
    """
    app = gateway(fuse, settings)
    try:
        config = uvicorn.Config(
            app, http=_Impatient, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=int(settings.timeout) + 1, timeout_keep_alive=_REST,
            ssl_certfile=settings.certificate, ssl_keyfile=settings.key,
        )  # fmt: skip
        config.load()
    except OSError as error:
        raise ConfigError(f"--certificate and --key must be PEM files that fit: {error}.") from error
    return _Server(config, app)


class _Server(uvicorn.Server):
    """Closes both doors at the same time."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        rpc = getattr(self.app.state, "rpc", None)
        closing = None if rpc is None else asyncio.ensure_future(rpc.close())
        await super().shutdown(sockets)
        if closing is not None and not self.force_exit:  # that is a second Ctrl-C
            await closing


class _Impatient(H11Protocol):
    """Closes a connection on which the head of a request does not come in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._late is None:
            self._late = self.loop.call_later(_HEAD, self.transport.close)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _check_rpc(settings: Settings) -> None:
    """Raise an error where the gRPC door cannot be opened."""
    try:
        import neuralfuse.serve.rpc  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("gRPC needs its libraries: pip install 'neuralfuse[grpc]'.") from error
    listen(settings.host, settings.grpc_port).close()


def listen(host: str, port: int) -> socket.socket:
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
