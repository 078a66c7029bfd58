"""Settings of a gateway; free of the server libraries and of torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from neuralfuse.errors import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a gateway serves.

    Attributes:
        upstream: Address of the upstream server, without /v2.
        models: Names of the models to protect, one option each; by default all. Other models pass unchanged.
        input_name: Name of the image input; by default the only input with the images' shape.
        layout: Order of the images' axes.
        host: Address to listen on. By default only this machine can reach it.
        port: Port to listen on; 0 for any free port.
        max_batch: Images per batch.
        max_wait: Seconds that a batch waits, at most, for requests that are still being read.
        in_flight: Requests in flight at most; further ones get 503.
        timeout: Seconds per request, from its head to the upstream response (504).
        max_body: Largest body of a request in bytes, decompressed; larger ones get 413.
        token: Bearer token that clients must send; None for no authentication.
        upstream_token: Bearer token for the upstream server, sent in place of the clients' token.
        certificate: PEM file of the certificate, for TLS.
        key: PEM file of the certificate's private key.
        grpc_upstream: Address of the upstream gRPC service, grpc[s]://HOST:PORT; with it the gateway serves gRPC, too.
        grpc_port: Port to listen on for gRPC.
    """

    upstream: str
    models: tuple[str, ...] = ()
    input_name: str | None = None
    layout: Literal["nchw", "nhwc"] = "nchw"
    host: str = "127.0.0.1"
    port: int = 8010
    max_batch: int = 64
    max_wait: float = 0.002
    in_flight: int = 128
    timeout: float = 30.0
    max_body: int = 16 * 2**20
    token: str | None = field(default=None, repr=False)
    upstream_token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    grpc_upstream: str | None = None
    grpc_port: int = 8011

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.upstream)
            known = parts.port is None or parts.port > 0
        except ValueError as error:
            raise ConfigError(f"--upstream must be a server's address: got {self.upstream!r}: {error}.") from error
        if not known or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"--upstream must be a server's address, http://HOST:PORT: got {self.upstream!r}.")
        require(
            not parts.path.rstrip("/").endswith("/v2") and "/v2/" not in parts.path,
            f"--upstream must be the address before /v2: got {self.upstream!r}.",
        )
        if self.grpc_upstream is not None:
            legal = re.fullmatch(r"grpcs?://(\[[^]/]+\]|[^:/]+):[0-9]+", self.grpc_upstream)
            require(legal is not None, f"--grpc-upstream must be grpc[s]://HOST:PORT: got {self.grpc_upstream!r}.")
            require(1 <= self.grpc_port <= 65535, f"grpc_port must be in 1..65535: got grpc_port={self.grpc_port}.")
            require(self.grpc_port != self.port, f"--port and --grpc-port must differ: got {self.port} twice.")
        require(0 <= self.port <= 65535, f"port must be in 0..65535: got port={self.port}.")
        for name in ("max_batch", "in_flight", "max_body"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1: got {name}={value}.")
        require(0 <= self.max_wait <= 60, f"max_wait must be in 0..60 seconds: got max_wait={self.max_wait}.")
        require(0 < self.timeout <= 86400, f"timeout must be in (0, 86400] seconds: got {self.timeout}.")
        both = (self.certificate is None) == (self.key is None)
        require(both, "--certificate and --key must come together: got one of them.")


def host_port(host: str, port: int) -> str:
    """Return HOST:PORT; an IPv6 address gets brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
