"""The gateway over gRPC: the protocol's inference service, with the same batches, limits and metrics as HTTP."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from neuralfuse.serve.batching import Batcher
from neuralfuse.serve.images import ImageInput
from neuralfuse.serve.in_flight import InFlightLimit, OverloadError
from neuralfuse.serve.metrics import Metrics
from neuralfuse.serve.settings import Settings, host_port
from neuralfuse.wire import DATATYPES, MAX_DIMENSIONS, Message, WireError, WireTensor, from_bytes, reshape, to_bytes

_LOG = logging.getLogger(__name__)
_SERVICE = "/inference.GRPCInferenceService/"
_FORWARDED = {
    f"{_SERVICE}{name}"
    for name in (
        "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
        "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
    )
} | {"/grpc.health.v1.Health/Check"}  # fmt: skip
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_SPARE = 8
"""Calls beyond the limit in flight that still get our error message. gRPC itself rejects further ones."""
Handler = Callable[[bytes, Any, float], Awaitable[bytes]]


class GrpcGateway(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A gRPC server in front of the upstream server's gRPC service.

    Args:
        settings: Addresses, models and limits.
        images: The image input of requests.
        batcher: Transforms images, shared with HTTP.
        limit: Limit on requests in flight, shared with HTTP.
        metrics: Metrics, shared with HTTP.
    """

    def __init__(
        self,
        settings: Settings,
        images: ImageInput,
        batcher: Batcher,
        limit: InFlightLimit,
        metrics: Metrics,
    ) -> None:
        self.settings, self.images, self.batcher = settings, images, batcher
        self.limit, self.metrics = limit, metrics

    async def start(self) -> int:
        """Listen, in the running event loop, and return the port.

        Raises:
            OSError: the port is not free.
        """
        scheme, _, address = str(self.settings.grpc_upstream).partition("://")
        unbounded = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if scheme == "grpcs":
            self.channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=unbounded)
        else:
            self.channel = grpc.aio.insecure_channel(address, options=unbounded)
        bounded = [("grpc.max_receive_message_length", self.settings.max_body), unbounded[1], ("grpc.so_reuseport", 0)]
        most = self.settings.in_flight + _SPARE
        self.server = grpc.aio.server(handlers=[self], options=bounded, maximum_concurrent_rpcs=most)
        where = host_port(self.settings.host, self.settings.grpc_port)
        if self.settings.certificate is None or self.settings.key is None:
            port = self.server.add_insecure_port(where)
        else:
            pair = (self.settings.key.read_bytes(), self.settings.certificate.read_bytes())
            port = self.server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
        await self.server.start()
        return int(port)

    async def close(self) -> None:
        """Accept no further calls, and finish those in flight."""
        await self.server.stop(self.settings.timeout)

    async def stop(self) -> None:
        """Close, and disconnect from the upstream server."""
        await self.close()
        await self.channel.close()

    def service(self, call: Any) -> Any:
        """Return the handler of a method, before the request is read; see `grpc.GenericRpcHandler`."""
        if not self._has_token(call.invocation_metadata):
            kind = "infer" if call.method == f"{_SERVICE}ModelInfer" else "other"
            return grpc.stream_stream_rpc_method_handler(partial(self._unauthenticated, kind))
        if call.method == f"{_SERVICE}ModelInfer":
            return grpc.stream_unary_rpc_method_handler(partial(self._guarded, self._infer, "infer"))
        if call.method in _FORWARDED:
            forward = partial(self._call_upstream, call.method)
            return grpc.stream_unary_rpc_method_handler(partial(self._guarded, forward, "other"))
        return grpc.stream_stream_rpc_method_handler(self._unimplemented)

    async def _unimplemented(self, calls: Any, context: Any) -> NoReturn:
        why = "a protected model must be queried by ModelInfer: images in other calls would not be transformed."
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)
        raise AssertionError  # abort raises

    async def _unauthenticated(self, kind: str, calls: Any, context: Any) -> NoReturn:
        self.metrics.count_request(kind, grpc.StatusCode.UNAUTHENTICATED.name, 0.0)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the request must carry the bearer token.")
        raise AssertionError  # abort raises

    async def _guarded(self, handle: Handler, kind: str, messages: Any, context: Any) -> bytes:
        """Handle a call within the limit on requests in flight; turn every error into a gRPC status.

        A call has one message. It is awaited here, not by gRPC, so that the deadline includes its arrival.
        """
        began, code, why, trailing = time.perf_counter(), grpc.StatusCode.INTERNAL, "", ()
        left = context.time_remaining()
        seconds = self.settings.timeout if left is None else min(left, self.settings.timeout)
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            with self.limit.slot():
                async with asyncio.timeout_at(deadline):
                    body = await anext(aiter(messages))
                answer = await handle(body, context, deadline)
            code = grpc.StatusCode.OK
            return answer
        except OverloadError as error:
            code, why = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except (WireError, DecodeError) as error:
            code, why = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except grpc.aio.AioRpcError as error:  # from the upstream server, or it cannot be reached
            code, why, trailing = error.code(), error.details() or "", error.trailing_metadata() or ()
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            why = f"the request must arrive and its images be transformed within {seconds:g} seconds."
        except StopAsyncIteration:
            code, why = grpc.StatusCode.INVALID_ARGUMENT, "the call must have one message: it has none."
        except asyncio.CancelledError:  # the client cancelled the call
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            _LOG.exception("gRPC %s", kind)
            why = "internal error of the gateway: see its log."
        finally:
            self.metrics.count_request(kind, code.name, time.perf_counter() - began)
        await context.abort(code, why, trailing)
        raise AssertionError  # abort raises

    def _has_token(self, metadata: Any) -> bool:
        if self.settings.token is None:
            return True
        given = dict(metadata or ()).get("authorization", "")
        return hmac.compare_digest(str(given).encode(), f"Bearer {self.settings.token}".encode())

    async def _infer(self, body: bytes, context: Any, deadline: float) -> bytes:
        request = service_pb2.ModelInferRequest.FromString(body)
        if self.settings.models and request.model_name not in self.settings.models:
            return await self._call_upstream(f"{_SERVICE}ModelInfer", body, context, deadline)
        with self.batcher.announce() as transform:
            message = await asyncio.to_thread(decode_request, request)
            found = self.images.find(message)
            x = await asyncio.to_thread(self.images.read, found)
            async with asyncio.timeout_at(deadline):
                with self.metrics.transforming(len(x)):
                    made = await transform(x)
        replace_tensor(request, self.images.replace(message, found, made)[found.name])
        with self.metrics.calling_upstream():
            return await self._call_upstream(f"{_SERVICE}ModelInfer", request.SerializeToString(), context, deadline)

    async def _call_upstream(self, method: str, body: bytes, context: Any, deadline: float) -> bytes:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        call = self.channel.unary_unary(method)
        answer: bytes = await call(body, timeout=left, metadata=self._forwarded_metadata(context))
        return answer

    def _forwarded_metadata(self, context: Any) -> list[tuple[str, Any]]:
        """Return the client's metadata without the entries that concern its own connection."""
        own = {"user-agent", "te", "content-type"}
        if self.settings.token is not None or self.settings.upstream_token is not None:
            own.add("authorization")
        metadata = [(key, value) for key, value in context.invocation_metadata() or () if key not in own]
        forwarded = [(key, value) for key, value in metadata if not key.startswith(("grpc-", ":"))]
        token = self.settings.upstream_token
        return [*forwarded, *([] if token is None else [("authorization", f"Bearer {token}")])]


def decode_request(request: Any) -> Message:
    """Return the tensors of a ModelInferRequest.

    Raises:
        WireError: the request does not follow the protocol.
    """
    raw, tensors = list(request.raw_input_contents), []
    if raw and len(raw) != len(request.inputs):
        raise WireError(f"raw_input_contents must be one for each input: got {len(raw)} for {len(request.inputs)}.")
    for number, one in enumerate(request.inputs):
        where, shape = f"inputs[{number}]", list(one.shape)
        if len(shape) > MAX_DIMENSIONS:
            raise WireError(f"{where} must have at most {MAX_DIMENSIONS} dimensions: got {len(shape)}.")
        if one.datatype not in DATATYPES:
            raise WireError(f"{where} must have a datatype of {', '.join(DATATYPES)}: got {one.datatype!r}.")
        if any(size < 0 for size in shape):
            raise WireError(f"{where} must have a shape of whole numbers: got {shape}.")
        if "shared_memory_region" in one.parameters:
            raise WireError(f"{where} must come in the request: shared memory of another machine cannot be read.")
        count = math.prod(shape)
        values = from_bytes(memoryview(raw[number]), one.datatype, count, where) if raw else _listed(one, count, where)
        tensors.append(WireTensor(one.name, one.datatype, reshape(values, shape, where)))
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise WireError(f"tensor names must be unique: got {', '.join(names)}.")
    return Message(tuple(tensors))


def replace_tensor(request: Any, tensor: WireTensor) -> None:
    """Replace the values of the ModelInferRequest's input with the tensor's name."""
    number = next(number for number, one in enumerate(request.inputs) if one.name == tensor.name)
    if request.raw_input_contents:
        request.raw_input_contents[number] = to_bytes(tensor.values, tensor.datatype)
    else:
        values = getattr(request.inputs[number].contents, _CONTENTS[tensor.datatype])
        values[:] = tensor.values.reshape(-1).tolist()


def _listed(one: Any, count: int, where: str) -> np.ndarray[Any, Any]:
    """Return the flat values of an input that lists them in its contents."""
    if one.datatype not in _CONTENTS:
        raise WireError(f"{where} must come in raw_input_contents: {one.datatype} has no list.")
    values = list(getattr(one.contents, _CONTENTS[one.datatype]))
    if len(values) != count:
        raise WireError(f"{where} must have {count} values by its shape: got {len(values)}.")
    made = np.empty(count, dtype=DATATYPES[one.datatype])
    try:
        made[:] = values
    except OverflowError as error:
        raise WireError(f"{where} must fit {one.datatype}: {error}.") from error
    return made
