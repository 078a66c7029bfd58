"""The gateway as an ASGI application: what it does with every kind of request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from neuralfuse.export.apply import transform_any
from neuralfuse.fuse import NeuralFuse
from neuralfuse.serve.batching import Batcher
from neuralfuse.serve.images import ImageInput
from neuralfuse.serve.metrics import Metrics
from neuralfuse.serve.settings import Settings
from neuralfuse.serve.translate import BINARY, Wishes, for_client, for_upstream
from neuralfuse.wire import HEADER, WireError, decode

_LOG = logging.getLogger(__name__)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# what is between two neighbours only, and what is made anew
_NOT_PASSED = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "host", "content-length", "content-encoding", "accept-encoding", "expect",
}  # fmt: skip


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


def gateway(fuse: NeuralFuse, settings: Settings) -> Starlette:
    """Return the application, ready for an ASGI server.

    Args:
        fuse: In eval mode, on the device where it is to run.
        settings: What it serves.
    """
    return _Gateway(fuse, settings).app


class _Gateway:
    """State of one gateway."""

    def __init__(self, fuse: NeuralFuse, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.images = ImageInput(fuse, settings.input_name, settings.layout)
        self.batcher = Batcher(
            partial(transform_any, fuse), most=settings.max_batch, wait=settings.max_wait, watch=self.metrics.batch
        )
        self.upstream = settings.upstream.rstrip("/")
        self.in_flight = 0
        self.binary: bool | None = None  # whether the server behind takes binary tensors; None until it said so
        routes = [
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/v2/health/live", self._live, methods=["GET"]),
            Route("/v2/health/ready", self._ready, methods=["GET"]),
            Route("/v2", self._guarded(self._server), methods=["GET"]),
            Route("/v2/models/{model}/infer", self._guarded(self._infer), methods=["POST"]),
            Route("/v2/models/{model}/versions/{version}/infer", self._guarded(self._infer), methods=["POST"]),
            Route("/{path:path}", self._guarded(self._other), methods=METHODS),
        ]
        self.app = Starlette(routes=routes, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.batcher.start()
        limits = httpx2.Limits(max_connections=self.settings.in_flight + 8, max_keepalive_connections=32)
        async with httpx2.AsyncClient(timeout=self.settings.timeout, limits=limits, follow_redirects=False) as client:
            self.client = client
            yield
        await self.batcher.stop()

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler with the token, the bound on requests in flight, and errors of the protocol."""

        async def guarded(request: Request) -> Response:
            began = time.perf_counter()
            kind = "infer" if request.url.path.endswith("/infer") else "other"
            response = await self._answered(handle, request)
            self.metrics.request(kind, response.status_code, time.perf_counter() - began)
            return response

        return guarded

    async def _answered(self, handle: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        try:
            self._admit(request)
        except Refused as refused:
            return refused.response
        self.in_flight += 1
        self.metrics.in_flight(self.in_flight)
        try:
            return await handle(request)
        except Refused as refused:
            return refused.response
        except WireError as error:
            return Refused(400, str(error)).response
        except ClientDisconnect:
            return Refused(400, "the client went away.").response
        except Exception:
            _LOG.exception("%s %s", request.method, request.url.path)
            return Refused(500, "the gateway failed; its log says why.").response
        finally:
            self.in_flight -= 1
            self.metrics.in_flight(self.in_flight)

    def _admit(self, request: Request) -> None:
        """Raise `Refused` where the token is wrong, or too many requests are worked on."""
        self._check_token(request)
        if self.in_flight >= self.settings.in_flight:
            raise Refused(503, f"{self.in_flight} requests are worked on already: try again.", {"Retry-After": "1"})

    def _check_token(self, request: Request) -> None:
        if self.settings.token is not None:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.settings.token}".encode()):
                raise Refused(401, "a bearer token must come with the request.", {"WWW-Authenticate": "Bearer"})

    async def _metrics(self, request: Request) -> Response:
        try:
            self._check_token(request)
        except Refused as refused:
            return refused.response
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _live(self, request: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    async def _ready(self, request: Request) -> Response:
        try:
            answer = await self._ask("GET", "/v2/health/ready", request)
        except Refused as refused:
            return Refused(503, str(refused)).response
        return _as_it_came(answer)

    async def _server(self, request: Request) -> Response:
        answer = await self._ask("GET", "/v2", request)
        try:
            about = orjson.loads(answer.content)
            extensions = list(about.get("extensions") or [])
        except (ValueError, AttributeError, TypeError):
            return _as_it_came(answer)
        if answer.status_code != 200:
            return _as_it_came(answer)
        about["extensions"] = [*extensions, *([] if BINARY in extensions else [BINARY])]  # it is translated here
        return Response(orjson.dumps(about), media_type="application/json")

    async def _other(self, request: Request) -> Response:
        if request.method == "POST" and request.url.path.rstrip("/").endswith("/infer"):
            raise Refused(404, "requests for answers must go to /v2/models/NAME[/versions/VERSION]/infer.")
        return await self._pass(request)

    async def _pass(self, request: Request) -> Response:
        path = _path(request) + (f"?{request.url.query}" if request.url.query else "")
        body = await self._body(request, unpack=False)
        headers = {"content-encoding": packed} if (packed := request.headers.get("content-encoding")) else {}
        return _as_it_came(await self._ask(request.method, path, request, content=body, headers=headers))

    async def _infer(self, request: Request) -> Response:
        models = self.settings.models
        if models and request.path_params["model"] not in models:
            return await self._pass(request)
        body = await self._body(request, unpack=True)
        message = await asyncio.to_thread(decode, body, _length(request), "inputs")
        found = self.images.find(message)
        x = await asyncio.to_thread(self.images.read, found)
        with self.metrics.transforming(len(x)):
            made = await self.batcher(x)
        wishes = Wishes.of(message)
        takes_binary = await self._takes_binary(request)
        sent = self.images.put(message, found, made)
        content, headers = await asyncio.to_thread(for_upstream, sent, wishes, takes_binary)
        with self.metrics.asking():
            answer = await self._ask("POST", _path(request), request, content=content, headers=headers)
        if answer.status_code != 200 or takes_binary or not wishes.binary:
            return _as_it_came(answer)
        try:
            made_of, headers = await asyncio.to_thread(for_client, answer.content, wishes)
        except WireError as error:
            raise Refused(502, f"the server behind must answer in the protocol: {error}") from error
        return Response(made_of, 200, {**_passed(answer.headers), **headers})

    async def _takes_binary(self, request: Request) -> bool:
        if self.binary is None:
            answer = await self._ask("GET", "/v2", request)
            try:
                known = orjson.loads(answer.content) if answer.status_code == 200 else None
            except ValueError:
                known = None
            if not isinstance(known, dict):
                return False  # it may say more next time
            self.binary = BINARY in (known.get("extensions") or [])
        return self.binary

    async def _body(self, request: Request, *, unpack: bool) -> bytes:
        most = self.settings.max_body
        too_large = Refused(413, f"the body must have at most {most} bytes: it has more.")
        packed = request.headers.get("content-encoding", "").lower() if unpack else ""
        unpacker = _unpacker(packed)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for chunk in request.stream():
                    part = chunk if unpacker is None else unpacker.decompress(chunk, most - size + 1)
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
        except TimeoutError as error:
            raise Refused(408, f"the body must arrive within {self.settings.timeout:g} seconds.") from error
        except zlib.error as error:
            raise Refused(400, f"the body must be {packed}: {error}.") from error
        if unpacker is not None and not unpacker.eof:
            raise Refused(400, f"the body must be {packed}: it is not whole.")
        return b"".join(parts)

    async def _ask(
        self, method: str, path: str, request: Request, *, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        passed = _passed(request.headers)
        passed.pop(HEADER.lower(), None) if headers and "content-type" in headers else None
        if self.settings.token is not None:
            passed.pop("authorization", None)  # it was meant for this gateway
        if self.settings.upstream_token is not None:
            passed["authorization"] = f"Bearer {self.settings.upstream_token}"
        try:
            return await self.client.request(
                method, self.upstream + path, content=content or None, headers={**passed, **(headers or {})}
            )
        except httpx2.TimeoutException as error:
            why = f"the server behind must answer within {self.settings.timeout:g} seconds."
            raise Refused(504, why) from error
        except httpx2.HTTPError as error:
            raise Refused(502, f"the server behind must be reachable: {error or type(error).__name__}.") from error


def _path(request: Request) -> str:
    return bytes(request.scope["raw_path"]).partition(b"?")[0].decode("ascii")


def _as_it_came(answer: httpx2.Response) -> Response:
    return Response(answer.content, answer.status_code, _passed(answer.headers))


def _passed(headers: Any) -> dict[str, str]:
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _NOT_PASSED | named}


def _length(request: Request) -> int | None:
    text = request.headers.get(HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise WireError(f"{HEADER} must be a whole number: got {text[:40]!r}.")
    return int(text)


def _unpacker(packed: str) -> Any:
    if packed in ("", "identity"):
        return None
    bits = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}.get(packed)
    if bits is None:
        raise Refused(415, f"the body must be gzip or deflate, or not packed: got {packed[:40]!r}.")
    return zlib.decompressobj(bits)
