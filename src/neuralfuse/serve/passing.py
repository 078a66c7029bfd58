"""What is passed on between a client and the server behind: paths, headers, packed bodies; and what is refused."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import httpx2
import orjson
from starlette.requests import Request
from starlette.responses import Response

from neuralfuse.wire import HEADER, WireError

# what is between two neighbours only, and what is made anew
_NOT_PASSED = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"upgrade",
    b"transfer-encoding", b"host", b"content-length", b"content-encoding", b"accept-encoding", b"expect", b"date",
}  # fmt: skip
Headers = list[tuple[bytes, bytes]]


class Refused(Exception):  # noqa: N818
    """A request that is answered with an error of the protocol."""

    def __init__(self, status: int, why: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(why)
        self.status, self.headers = status, headers or {}

    @property
    def response(self) -> Response:
        """The answer."""
        body = orjson.dumps({"error": " ".join(str(self).split())})
        return Response(body, self.status, self.headers, media_type="application/json")


def target_of(request: Request) -> bytes:
    """Return path and query as they came, if they are a path below the server's own, and nothing that leads elsewhere.

    Raises:
        Refused: they are not.
    """
    raw = bytes(request.scope["raw_path"]).partition(b"?")[0]
    if not raw.startswith(b"/") or b"\\" in raw or {".", ".."} & set(segments_of(request)):
        raise Refused(400, "the path must begin with / and have no part that is . or ..")
    query = bytes(request.scope["query_string"])
    return raw + (b"?" + query if query else b"")


def segments_of(request: Request) -> list[str]:
    """Return the parts of a path, as the server behind may read them."""
    raw = bytes(request.scope["raw_path"]).partition(b"?")[0].decode("ascii", "replace")
    return [part for one in raw.split("/") for part in unquote(one).replace("\\", "/").split("/") if part]


def as_it_came(answer: httpx2.Response) -> Response:
    """Return the server's answer."""
    return make_response(answer.content, answer.status_code, passed_on(answer.headers.raw, []))


def make_response(body: bytes, status: int, headers: Headers) -> Response:
    """Return an answer with headers of which a name may come several times."""
    made = Response(body, status)
    made.raw_headers = [*headers, *made.raw_headers]  # its own is the length
    return made


def passed_on(headers: Iterable[tuple[bytes, bytes]], more: Headers) -> Headers:
    """Return headers that are passed on, each as often as it came, with some more in the place of their like."""
    own = [(name.lower(), value) for name, value in headers]
    named = {part.strip().lower() for name, value in own if name == b"connection" for part in value.split(b",")}
    left_out = _NOT_PASSED | named | {name for name, _ in more}
    if more and (b"content-type" in {name for name, _ in more}):
        left_out.add(HEADER.lower().encode())  # it goes with the body
    return [*((name, value) for name, value in own if name not in left_out), *more]


def as_raw(headers: dict[str, str]) -> Headers:
    """Return headers as bytes."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def header_length(request: Request) -> int | None:
    """Return the length of the JSON before binary tensors; None where there are none.

    Raises:
        WireError: it is no number.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise WireError(f"{HEADER} must be a whole number: got {text[:40]!r}.")
    return int(text)


def unpacker_for(packed: str) -> Any:
    """Return what unpacks a body, with the interface of `zlib.decompressobj`; None where it is not packed.

    Raises:
        Refused: there is no such packing.
    """
    if packed in ("", "identity"):
        return None
    bits = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}.get(packed)
    if bits is None:
        raise Refused(415, f"the body must be gzip or deflate, or not packed: got {packed[:40]!r}.")
    return zlib.decompressobj(bits)
