"""What a gateway is told when it starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from neuralfuse.errors import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a gateway serves.

    Attributes:
        upstream: Address of the server behind it, without ``/v2``.
        models: Names of the models that are protected; none for all. Requests to others pass untouched.
        input_name: Name of the image input; by default the only one that has the images' shape.
        layout: Order of the images' axes.
        host: Address to listen on: this machine only, unless told otherwise.
        port: To listen on; 0 for any that is free.
        max_batch: Images that are transformed at once.
        max_wait: Seconds that an image waits, at most, for those of other requests that have come.
        in_flight: Requests that are worked on at a time; further ones are turned away (503).
        timeout: Seconds for a request, from its head to the answer of the server behind.
        max_body: Bytes of a request's body, unpacked; larger ones are turned away (413).
        token: Clients must send it as a bearer token; None for anyone.
        upstream_token: Sent to the server behind it in the place of what clients send.
        certificate: PEM file, for TLS.
        key: PEM file of its private key.
        grpc_upstream: Address of the gRPC service of the server behind it, ``grpc[s]://HOST:PORT``; None for no gRPC.
        grpc_port: To listen on for gRPC.
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
    token: str | None = None
    upstream_token: str | None = None
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
        require(0 < self.timeout <= 86400, f"timeout must be in 0..86400 seconds: got timeout={self.timeout}.")
        both = (self.certificate is None) == (self.key is None)
        require(both, "--certificate and --key must come together: got one of them.")


def place_of(host: str, port: int) -> str:
    """Return HOST:PORT, as an address has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
