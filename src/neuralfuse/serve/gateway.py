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

import httpx2
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from neuralfuse.export.apply import transform_any
from neuralfuse.fuse import NeuralFuse
from neuralfuse.serve.admission import Admission, FullError
from neuralfuse.serve.batching import Batcher
from neuralfuse.serve.images import ImageInput
from neuralfuse.serve.metrics import Metrics
from neuralfuse.serve.passing import (
    Headers,
    Refused,
    as_it_came,
    as_raw,
    header_length,
    make_response,
    passed_on,
    segments_of,
    target_of,
    unpacker_for,
)
from neuralfuse.serve.settings import Settings
from neuralfuse.serve.translate import BINARY, Wishes, for_client, for_upstream
from neuralfuse.serve.upstream import client_of, sent
from neuralfuse.wire import WireError, decode

_LOG = logging.getLogger(__name__)
_PROBES = 4
"""Questions at a time whether the server behind is ready: they need no token, and must not keep others from it."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


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
        self.upstream = httpx2.URL(settings.upstream.rstrip("/"))
        self.client = client_of(settings)
        self.admission = Admission(settings.in_flight, self.metrics)
        self.readiness = asyncio.Semaphore(_PROBES)
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
        self.app = Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._no_such_method}
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.batcher.start()
        async with self.client, self._rpc_door():
            yield
        await self.batcher.stop()

    @asynccontextmanager
    async def _rpc_door(self) -> AsyncIterator[None]:
        """Hold the gRPC door open, if there is to be one."""
        if self.settings.grpc_upstream is None:
            yield
            return
        from neuralfuse.serve.rpc import RpcDoor  # noqa: PLC0415

        door = RpcDoor(self.settings, self.images, self.batcher, self.admission, self.metrics)
        await door.start()
        self.app.state.rpc = door
        yield
        await door.stop()

    def _guarded(self, handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a handler with the token, the bound on requests in flight, and errors of the protocol."""

        async def guarded(request: Request) -> Response:
            began = time.perf_counter()
            kind = "infer" if request.url.path.endswith("/infer") else "other"
            self._begin(request)
            response = await self._answered(handle, request)
            self.metrics.request(kind, response.status_code, time.perf_counter() - began)
            return response

        return guarded

    def _begin(self, request: Request) -> None:
        """Set the time until which a request must be answered."""
        request.state.until = asyncio.get_running_loop().time() + self.settings.timeout

    async def _answered(self, handle: Callable[[Request], Awaitable[Response]], request: Request) -> Response:
        try:
            self._check_token(request)
            with self.admission.one():
                return await handle(request)
        except FullError as error:
            return Refused(503, str(error), {"Retry-After": "1"}).response
        except Refused as refused:
            return refused.response
        except WireError as error:
            return Refused(400, str(error)).response
        except ClientDisconnect:
            return Refused(400, "the client went away.").response
        except Exception:
            _LOG.exception("%s %s", request.method, request.url.path)
            return Refused(500, "the gateway failed; its log says why.").response

    async def _no_such_method(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        self.metrics.request("other", status, 0.0)
        if status != 405:
            return Refused(status, "the path must begin with / and be one of the protocol's.").response
        allowed = ", ".join(METHODS)
        why = f"the method must be one of {allowed}: got {request.method[:40]}."
        return Refused(405, why, {"Allow": allowed}).response

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
        if self.readiness.locked():
            return Refused(503, "the server behind is being asked already whether it is ready.").response
        async with self.readiness:
            self._begin(request)
            try:
                answer = await self._ask("GET", request)
            except Refused as refused:
                return Refused(503, str(refused)).response
        return as_it_came(answer)

    async def _server(self, request: Request) -> Response:
        answer = await self._ask("GET", request)
        try:
            about = orjson.loads(answer.content)
            extensions = list(about.get("extensions") or [])
        except (ValueError, AttributeError, TypeError):
            return as_it_came(answer)
        if answer.status_code != 200:
            return as_it_came(answer)
        about["extensions"] = [*extensions, *([] if BINARY in extensions else [BINARY])]  # it is translated here
        return Response(orjson.dumps(about), media_type="application/json")

    async def _other(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD", "OPTIONS") and self._could_answer(segments_of(request)):
            why = "images are transformed in POST /v2/models/NAME[/versions/VERSION]/infer only."
            raise Refused(501, f"no other request may ask a protected model for answers: {why}")
        return await self._pass(request)

    def _could_answer(self, path: list[str]) -> bool:
        """Say whether a path that is not the one of infer may lead to answers of a protected model."""
        if not self.settings.models:
            return path[:2] != ["v2", "repository"]
        if len(path) < 3 or path[1] != "models":
            return False
        return path[2].partition(":")[0] in self.settings.models

    async def _pass(self, request: Request) -> Response:
        body = await self._body(request, unpack=False)
        packed = [(name, value) for name, value in request.headers.raw if name == b"content-encoding"]
        answer = await self._ask(request.method, request, content=body, headers=packed)
        response = as_it_came(answer)
        if request.method == "HEAD":  # the length of what is not sent
            length = [(name, value) for name, value in answer.headers.raw if name.lower() == b"content-length"]
            kept = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
            response.raw_headers = [*kept, *length]
        return response

    async def _infer(self, request: Request) -> Response:
        models = self.settings.models
        if models and request.path_params["model"] not in models:
            return await self._pass(request)
        body = await self._body(request, unpack=True)
        with self.batcher.coming() as transform:
            message = await asyncio.to_thread(decode, body, header_length(request), "inputs")
            found = self.images.find(message)
            x = await asyncio.to_thread(self.images.read, found)
            try:
                async with asyncio.timeout_at(request.state.until):
                    with self.metrics.transforming(len(x)):
                        made = await transform(x)
            except TimeoutError as error:
                why = f"the images must be transformed within {self.settings.timeout:g} seconds: too many wait."
                raise Refused(503, why, {"Retry-After": "1"}) from error
        wishes = Wishes.of(message)
        takes_binary = await self._takes_binary(request)
        sent = self.images.put(message, found, made)
        content, headers = await asyncio.to_thread(for_upstream, sent, wishes, takes_binary)
        with self.metrics.asking():
            answer = await self._ask("POST", request, content=content, headers=as_raw(headers))
        if answer.status_code != 200:
            self.binary = None  # it may be another server by now
        if answer.status_code != 200 or takes_binary or not wishes.binary:
            return as_it_came(answer)
        try:
            made_of, headers = await asyncio.to_thread(for_client, answer.content, wishes)
        except WireError as error:
            raise Refused(502, f"the server behind must answer in the protocol: {error}") from error
        return make_response(made_of, 200, passed_on(answer.headers.raw, as_raw(headers)))

    async def _takes_binary(self, request: Request) -> bool:
        if self.binary is None:
            answer = await self._ask("GET", request, path=b"/v2")
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
        packed = request.headers.get("content-encoding", "").lower() if unpack else ""
        unpacker = unpacker_for(packed)
        parts, came, size = [], 0, 0
        try:
            async with asyncio.timeout_at(request.state.until):
                async for chunk in request.stream():
                    came += len(chunk)
                    if unpacker is not None and unpacker.eof and chunk:
                        raise Refused(400, f"the body must be one piece of {packed}: more came behind its end.")
                    part = chunk if unpacker is None else unpacker.decompress(chunk, most - size + 1)
                    size += len(part)
                    if max(came, size) > most:
                        raise Refused(413, f"the body must have at most {most} bytes: it has more.")
                    parts.append(part)
        except TimeoutError as error:
            raise Refused(408, f"the body must arrive within {self.settings.timeout:g} seconds.") from error
        except zlib.error as error:
            raise Refused(400, f"the body must be {packed}: {error}.") from error
        if unpacker is not None and (not unpacker.eof or unpacker.unused_data):
            raise Refused(400, f"the body must be one whole piece of {packed}.")
        return b"".join(parts)

    async def _ask(
        self, method: str, request: Request, *, path: bytes = b"", content: bytes = b"", headers: Headers | None = None
    ) -> httpx2.Response:
        """Ask the server behind for the path of the request, or another one, with the request's headers and some more.

        Raises:
            Refused: it cannot be reached, or does not answer in time.
        """
        passed = passed_on(request.headers.raw, headers or [])
        if self.settings.token is not None or self.settings.upstream_token is not None:  # it was meant for this gateway
            passed = [(name, value) for name, value in passed if name != b"authorization"]
        if self.settings.upstream_token is not None:
            passed.append((b"authorization", f"Bearer {self.settings.upstream_token}".encode()))
        target = path or target_of(request)
        url = self.upstream.copy_with(raw_path=self.upstream.raw_path.rstrip(b"/") + target)
        try:
            async with asyncio.timeout_at(request.state.until):
                return await sent(self.client, method, url, content or None, passed)
        except (TimeoutError, httpx2.TimeoutException) as error:
            why = f"the server behind must answer within {self.settings.timeout:g} seconds."
            raise Refused(504, why) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Refused(502, f"the server behind must be reachable: {type(error).__name__}.") from error
