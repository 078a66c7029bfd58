"""The gateway as an ASGI application: one handler per kind of request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
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
from neuralfuse.serve.batching import Batcher
from neuralfuse.serve.forwarding import (
    GatewayError,
    Headers,
    forward_response,
    forwarded_headers,
    header_length,
    make_response,
    path_segments,
    raw_headers,
    read_body,
    request_target,
)
from neuralfuse.serve.images import ImageInput
from neuralfuse.serve.in_flight import InFlightLimit, OverloadError
from neuralfuse.serve.metrics import Metrics
from neuralfuse.serve.settings import Settings
from neuralfuse.serve.translate import BINARY, BinaryOutputs, encode_request, encode_response
from neuralfuse.serve.upstream import make_client, send
from neuralfuse.wire import WireError, decode

_LOG = logging.getLogger(__name__)
_PROBES = 4
"""Readiness checks in flight at most. They need no token, so they have a limit of their own."""
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Handler = Callable[[Request], Awaitable[Response]]


def gateway(fuse: NeuralFuse, settings: Settings) -> Starlette:
    """Return the application for an ASGI server.

    Args:
        fuse: In eval mode, on the device where it is to run.
        settings: Upstream server, models and limits.

    Raises:
        ConfigError: the certificates for the upstream server cannot be read.
    """
    return _Gateway(fuse, settings).app


class _Gateway:
    """State of one gateway."""

    def __init__(self, fuse: NeuralFuse, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.images = ImageInput(fuse, settings.input_name, settings.layout)
        self.batcher = Batcher(
            partial(transform_any, fuse),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            on_batch=self.metrics.count_batch,
        )
        self.upstream = httpx2.URL(settings.upstream.rstrip("/"))
        self.client = make_client(settings)
        self.limit = InFlightLimit(settings.in_flight, self.metrics)
        self.probes = asyncio.Semaphore(_PROBES)
        self.binary: bool | None = None  # whether the upstream server takes binary tensors; None if not known yet
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
            routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: self._routing_error}
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.batcher.start()
        async with self.client, self._grpc():
            yield
        await self.batcher.stop()

    @asynccontextmanager
    async def _grpc(self) -> AsyncIterator[None]:
        """Serve gRPC, if the settings name a gRPC upstream."""
        if self.settings.grpc_upstream is None:
            yield
            return
        from neuralfuse.serve.rpc import GrpcGateway  # noqa: PLC0415

        server = GrpcGateway(self.settings, self.images, self.batcher, self.limit, self.metrics)
        await server.start()
        self.app.state.rpc = server
        yield
        await server.stop()

    def _guarded(self, handle: Handler) -> Handler:
        """Wrap a handler with token, limit on requests in flight, JSON errors and metrics."""

        async def guarded(request: Request) -> Response:
            began = time.perf_counter()
            kind = "infer" if request.url.path.endswith("/infer") else "other"
            self._set_deadline(request)
            response = await self._respond(handle, request)
            self.metrics.count_request(kind, response.status_code, time.perf_counter() - began)
            return response

        return guarded

    def _set_deadline(self, request: Request) -> None:
        request.state.deadline = asyncio.get_running_loop().time() + self.settings.timeout

    async def _respond(self, handle: Handler, request: Request) -> Response:
        try:
            self._check_token(request)
            with self.limit.slot():
                return await handle(request)
        except OverloadError as error:
            return GatewayError(503, str(error), {"Retry-After": "1"}).response
        except GatewayError as error:
            return error.response
        except WireError as error:
            return GatewayError(400, str(error)).response
        except ClientDisconnect:
            return GatewayError(400, "the client closed the connection.").response
        except Exception:
            _LOG.exception("%s %s", request.method, request.url.path)
            return GatewayError(500, "internal error of the gateway: see its log.").response

    async def _routing_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        self.metrics.count_request("other", status, 0.0)
        if status != 405:
            return GatewayError(status, "the path must begin with / and be one of the protocol's.").response
        allowed = ", ".join(METHODS)
        message = f"the method must be one of {allowed}: got {request.method[:40]}."
        return GatewayError(405, message, {"Allow": allowed}).response

    def _check_token(self, request: Request) -> None:
        if self.settings.token is not None:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.settings.token}".encode()):
                raise GatewayError(401, "the request must carry the bearer token.", {"WWW-Authenticate": "Bearer"})

    async def _metrics(self, request: Request) -> Response:
        try:
            self._check_token(request)
        except GatewayError as error:
            return error.response
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _live(self, request: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    async def _ready(self, request: Request) -> Response:
        if self.probes.locked():
            return GatewayError(503, f"{_PROBES} readiness checks are in flight already: try again.").response
        async with self.probes:
            self._set_deadline(request)
            try:
                answer = await self._call_upstream("GET", request)
            except GatewayError as error:
                return GatewayError(503, str(error)).response
        return forward_response(answer)

    async def _server(self, request: Request) -> Response:
        answer = await self._call_upstream("GET", request)
        try:
            about = orjson.loads(answer.content)
            extensions = list(about.get("extensions") or [])
        except (ValueError, AttributeError, TypeError):
            return forward_response(answer)
        if answer.status_code != 200:
            return forward_response(answer)
        about["extensions"] = [*extensions, *([] if BINARY in extensions else [BINARY])]  # the gateway translates
        return Response(orjson.dumps(about), media_type="application/json")

    async def _other(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD", "OPTIONS") and self._could_infer(path_segments(request)):
            raise GatewayError(
                501,
                "a protected model must be queried by POST /v2/models/NAME[/versions/VERSION]/infer: images in other "
                "requests would not be transformed.",
            )
        return await self._forward(request)

    def _could_infer(self, path: list[str]) -> bool:
        """Say whether a path other than infer may lead to an inference of a protected model."""
        if not self.settings.models:
            return path[:2] != ["v2", "repository"]
        if len(path) < 3 or path[1] != "models":
            return False
        return path[2].partition(":")[0] in self.settings.models

    async def _forward(self, request: Request) -> Response:
        body = await read_body(request, self.settings, decompress=False)
        encoding = [(name, value) for name, value in request.headers.raw if name == b"content-encoding"]
        answer = await self._call_upstream(request.method, request, content=body, headers=encoding)
        response = forward_response(answer)
        if request.method == "HEAD":  # its length is that of the body that GET would have
            length = [(name, value) for name, value in answer.headers.raw if name.lower() == b"content-length"]
            kept = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
            response.raw_headers = [*kept, *length]
        return response

    async def _infer(self, request: Request) -> Response:
        models = self.settings.models
        if models and request.path_params["model"] not in models:
            return await self._forward(request)
        body = await read_body(request, self.settings, decompress=True)
        with self.batcher.announce() as transform:
            message = await asyncio.to_thread(decode, body, header_length(request), "inputs")
            found = self.images.find(message)
            x = await asyncio.to_thread(self.images.read, found)
            try:
                async with asyncio.timeout_at(request.state.deadline):
                    with self.metrics.transforming(len(x)):
                        made = await transform(x)
            except TimeoutError as error:
                why = f"the images must be transformed within {self.settings.timeout:g} seconds: the queue is too long."
                raise GatewayError(503, why, {"Retry-After": "1"}) from error
        outputs = BinaryOutputs.of(message)
        takes_binary = await self._takes_binary(request)
        transformed = self.images.replace(message, found, made)
        content, headers = await asyncio.to_thread(encode_request, transformed, takes_binary)
        with self.metrics.calling_upstream():
            answer = await self._call_upstream("POST", request, content=content, headers=raw_headers(headers))
        if answer.status_code != 200:
            self.binary = None  # another server may have taken its place
        if answer.status_code != 200 or takes_binary or not outputs.wants_any:
            return forward_response(answer)
        try:
            translated, headers = await asyncio.to_thread(encode_response, answer.content, outputs)
        except WireError as error:
            raise GatewayError(502, f"the upstream response must follow the protocol: {error}") from error
        return make_response(translated, 200, forwarded_headers(answer.headers.raw, raw_headers(headers)))

    async def _takes_binary(self, request: Request) -> bool:
        if self.binary is None:
            answer = await self._call_upstream("GET", request, path=b"/v2")
            try:
                about = orjson.loads(answer.content) if answer.status_code == 200 else None
            except ValueError:
                about = None
            if not isinstance(about, dict):
                return False  # not known yet: the next request checks again
            self.binary = BINARY in (about.get("extensions") or [])
        return self.binary

    async def _call_upstream(
        self, method: str, request: Request, *, path: bytes = b"", content: bytes = b"", headers: Headers | None = None
    ) -> httpx2.Response:
        """Send the upstream server a request with the client's headers.

        Args:
            method: HTTP method.
            request: The client's request.
            path: Path to call; by default the client's path and query.
            content: The body.
            headers: Headers that replace the client's headers of the same name.

        Raises:
            GatewayError: the server cannot be reached, or does not answer in time.
        """
        forwarded = forwarded_headers(request.headers.raw, headers or [])
        if self.settings.token is not None or self.settings.upstream_token is not None:  # meant for the gateway
            forwarded = [(name, value) for name, value in forwarded if name != b"authorization"]
        if self.settings.upstream_token is not None:
            forwarded.append((b"authorization", f"Bearer {self.settings.upstream_token}".encode()))
        target = path or request_target(request)
        url = self.upstream.copy_with(raw_path=self.upstream.raw_path.rstrip(b"/") + target)
        try:
            async with asyncio.timeout_at(request.state.deadline):
                return await send(self.client, method, url, content or None, forwarded)
        except (TimeoutError, httpx2.TimeoutException) as error:
            why = f"the upstream server must answer within {self.settings.timeout:g} seconds."
            raise GatewayError(504, why) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise GatewayError(502, f"the upstream server must be reachable: {type(error).__name__}.") from error
