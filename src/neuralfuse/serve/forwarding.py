"""Forwarding between a client and the upstream server: paths, headers, compressed bodies, errors of the gateway."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import httpx2
import orjson
from starlette.requests import Request
from starlette.responses import Response

from neuralfuse.serve.settings import Settings
from neuralfuse.wire import HEADER, WireError

# Hop-by-hop headers, and headers that the gateway sets itself.
_NOT_FORWARDED = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"upgrade",
    b"transfer-encoding", b"host", b"content-length", b"content-encoding", b"accept-encoding", b"expect", b"date",
}  # fmt: skip
Headers = list[tuple[bytes, bytes]]


class GatewayError(Exception):
    """An error that the gateway returns with this HTTP status, as JSON of the protocol."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}

    @property
    def response(self) -> Response:
        """The HTTP response."""
        body = orjson.dumps({"error": " ".join(str(self).split())})
        return Response(body, self.status, self.headers, media_type="application/json")


def request_target(request: Request) -> bytes:
    """Return path and query exactly as the client sent them.

    Raises:
        GatewayError: the path could lead outside the upstream address.
    """
    raw = bytes(request.scope["raw_path"]).partition(b"?")[0]
    if not raw.startswith(b"/") or b"\\" in raw or {".", ".."} & set(path_segments(request)):
        raise GatewayError(400, "the path must begin with / and contain no segment . or ..")
    query = bytes(request.scope["query_string"])
    return raw + (b"?" + query if query else b"")


def path_segments(request: Request) -> list[str]:
    """Return the decoded segments of the path, as the upstream server may read them."""
    raw = bytes(request.scope["raw_path"]).partition(b"?")[0].decode("ascii", "replace")
    return [part for one in raw.split("/") for part in unquote(one).replace("\\", "/").split("/") if part]


def forward_response(answer: httpx2.Response) -> Response:
    """Return the upstream response as the gateway's own."""
    return make_response(answer.content, answer.status_code, forwarded_headers(answer.headers.raw, []))


def make_response(body: bytes, status: int, headers: Headers) -> Response:
    """Return a response with these headers; a name may occur several times."""
    made = Response(body, status)
    made.raw_headers = [*headers, *made.raw_headers]  # starlette's own header is the length
    return made


def forwarded_headers(headers: Iterable[tuple[bytes, bytes]], extra: Headers) -> Headers:
    """Return the headers to forward, repeated ones included; ``extra`` replaces headers of the same name."""
    own = [(name.lower(), value) for name, value in headers]
    named = {part.strip().lower() for name, value in own if name == b"connection" for part in value.split(b",")}
    left_out = _NOT_FORWARDED | named | {name for name, _ in extra}
    if extra and (b"content-type" in {name for name, _ in extra}):
        left_out.add(HEADER.lower().encode())  # it describes the old body
    return [*((name, value) for name, value in own if name not in left_out), *extra]


def raw_headers(headers: dict[str, str]) -> Headers:
    """Return headers as bytes."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def header_length(request: Request) -> int | None:
    """Return the length of the JSON before binary tensors; None if the body is JSON alone.

    Raises:
        WireError: the header is not a number.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise WireError(f"{HEADER} must be a whole number: got {text[:40]!r}.")
    return int(text)


async def read_body(request: Request, settings: Settings, *, decompress: bool) -> bytes:
    """Return the body of a request, decompressed if asked for.

    Raises:
        GatewayError: it is too large, arrives too late, or cannot be decompressed.
    """
    encoding = request.headers.get("content-encoding", "").lower() if decompress else ""
    decompressor, most = _decompressor(encoding), settings.max_body
    parts, received, size = [], 0, 0
    try:
        async with asyncio.timeout_at(request.state.deadline):
            async for chunk in request.stream():
                received += len(chunk)
                if decompressor is not None and decompressor.eof and chunk:
                    raise GatewayError(400, f"the body must be one {encoding} stream: it has trailing data.")
                part = chunk if decompressor is None else decompressor.decompress(chunk, most - size + 1)
                size += len(part)
                if max(received, size) > most:
                    raise GatewayError(413, f"the body must have at most {most} bytes: it has more.")
                parts.append(part)
    except TimeoutError as error:
        raise GatewayError(408, f"the body must arrive within {settings.timeout:g} seconds.") from error
    except zlib.error as error:
        raise GatewayError(400, f"the body must be {encoding}: {error}.") from error
    if decompressor is not None and (not decompressor.eof or decompressor.unused_data):
        raise GatewayError(400, f"the body must be one complete {encoding} stream.")
    return b"".join(parts)


def _decompressor(encoding: str) -> Any:
    """Return a decompressor with the interface of `zlib.decompressobj`; None for a body that is not compressed."""
    if encoding in ("", "identity"):
        return None
    bits = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}.get(encoding)
    if bits is None:
        raise GatewayError(415, f"Content-Encoding must be gzip, deflate or identity: got {encoding[:40]!r}.")
    return zlib.decompressobj(bits)
