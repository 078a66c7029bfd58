"""Running a gateway as a process."""

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
from neuralfuse.serve.settings import Settings, host_port

_KEEP_ALIVE = 75
"""Seconds that an idle connection is kept. Clients usually close theirs earlier; the gateway must not do so first."""

_HEAD = 30
"""Seconds within which the head of a request must arrive."""


def serve(fuse: NeuralFuse, settings: Settings, *, say: Callable[[str], None] = lambda text: None) -> None:
    """Serve until SIGTERM or Ctrl-C; then accept no new request, and finish those in flight.

    Args:
        fuse: In eval mode, on the device where it is to run.
        settings: Addresses, limits and the rest.
        say: Called with the gateway's addresses.

    Raises:
        ConfigError: a port is not free, or the certificate cannot be used.
        MissingExtraError: gRPC is wanted, and its libraries are not installed.
    """
    server = server_of(fuse, settings)
    if settings.grpc_upstream is not None:
        _check_grpc(settings)
    listening = listen(settings.host, settings.port)
    scheme = "http" if settings.certificate is None else "https"
    host, port = listening.getsockname()[:2]
    say(f"serving on {scheme}://{host_port(host, port)}, in front of {settings.upstream}")
    if settings.grpc_upstream is not None:
        say(f"gRPC on {host_port(settings.host, settings.grpc_port)}, in front of {settings.grpc_upstream}")
    signal.signal(signal.SIGTERM, lambda *args: None)  # uvicorn raises it again after its shutdown
    with listening:
        server.run([listening])


def server_of(fuse: NeuralFuse, settings: Settings) -> uvicorn.Server:
    """Return the HTTP server of a gateway.

    Raises:
        ConfigError: the certificate cannot be used.
    """
    app = gateway(fuse, settings)
    try:
        config = uvicorn.Config(
            app, http=_HeadTimeout, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=int(settings.timeout) + 1, timeout_keep_alive=_KEEP_ALIVE,
            ssl_certfile=settings.certificate, ssl_keyfile=settings.key,
        )  # fmt: skip
        config.load()
    except OSError as error:
        raise ConfigError(f"--certificate and --key must be a matching pair of PEM files: {error}.") from error
    return _Server(config, app)


class _Server(uvicorn.Server):
    """Shuts down HTTP and gRPC at the same time."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        rpc = getattr(self.app.state, "rpc", None)
        closing = None if rpc is None else asyncio.ensure_future(rpc.close())
        await super().shutdown(sockets)
        if closing is not None and not self.force_exit:  # a second Ctrl-C sets it
            await closing


class _HeadTimeout(H11Protocol):
    """Closes a connection if the head of a request does not arrive in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._stop_timer()

    def _update_timer(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _check_grpc(settings: Settings) -> None:
    """Raise an error if gRPC cannot be served."""
    try:
        import neuralfuse.serve.rpc  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingExtraError("gRPC needs its libraries: pip install 'neuralfuse[grpc]'.") from error
    listen(settings.host, settings.grpc_port).close()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Its protocol is TCP explicitly: otherwise asyncio does not turn off Nagle's algorithm, which adds 40 ms of latency.

    Raises:
        ConfigError: host and port are not free.
    """
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
