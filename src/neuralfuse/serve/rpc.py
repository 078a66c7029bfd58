"""The gateway's second door: the protocol's gRPC service, behind the same batches, limits and counters."""

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

from neuralfuse.serve.admission import Admission, FullError
from neuralfuse.serve.batching import Batcher
from neuralfuse.serve.images import ImageInput
from neuralfuse.serve.metrics import Metrics
from neuralfuse.serve.settings import Settings, place_of
from neuralfuse.wire import DATATYPES, MOST_DIMENSIONS, Message, WireError, WireTensor, from_bytes, shaped, to_bytes

_LOG = logging.getLogger(__name__)
_SERVICE = "/inference.GRPCInferenceService/"
_READS = (
    "ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
)  # fmt: skip
_PASSED = {f"{_SERVICE}{name}" for name in _READS} | {"/grpc.health.v1.Health/Check"}
_LISTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_SPARE = 8
"""Calls beyond those that may be worked on, which are read to be told why not; further ones gRPC itself turns away."""
Handle = Callable[[bytes, Any, float], Awaitable[bytes]]


class RpcDoor(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers calls of the service; see `Settings` for what it is told.

    Args:
        settings: What it serves.
        images: The image input of requests.
        batcher: Transforms images.
        admission: Who may come in.
        metrics: What is counted.
    """

    def __init__(
        self,
        settings: Settings,
        images: ImageInput,
        batcher: Batcher,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        self.settings, self.images, self.batcher = settings, images, batcher
        self.admission, self.metrics = admission, metrics

    async def start(self) -> int:
        """Begin to listen, in the running event loop; return the port.

        Raises:
            OSError: it cannot listen there.
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
        where = place_of(self.settings.host, self.settings.grpc_port)
        if self.settings.certificate is None or self.settings.key is None:
            port = self.server.add_insecure_port(where)
        else:
            pair = (self.settings.key.read_bytes(), self.settings.certificate.read_bytes())
            port = self.server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
        await self.server.start()
        return int(port)

    async def close(self) -> None:
        """Take no further calls, and answer those that have begun."""
        await self.server.stop(self.settings.timeout)

    async def stop(self) -> None:
        """Close, and let go of the server behind."""
        await self.close()
        await self.channel.close()

    def service(self, call: Any) -> Any:
        """Return who answers a method, before any of the request is read; see `grpc.GenericRpcHandler`."""
        if not self._knows_token(call.invocation_metadata):
            kind = "infer" if call.method == f"{_SERVICE}ModelInfer" else "other"
            return grpc.stream_stream_rpc_method_handler(partial(self._unknown, kind))
        if call.method == f"{_SERVICE}ModelInfer":
            return grpc.stream_unary_rpc_method_handler(partial(self._guarded, self._infer, "infer"))
        if call.method in _PASSED:
            ask = partial(self._ask, call.method)
            return grpc.stream_unary_rpc_method_handler(partial(self._guarded, ask, "other"))
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, calls: Any, context: Any) -> NoReturn:
        why = "images are transformed in ModelInfer only, so no other call may ask a protected model for answers."
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)
        raise AssertionError  # abort raises

    async def _unknown(self, kind: str, calls: Any, context: Any) -> NoReturn:
        self.metrics.request(kind, grpc.StatusCode.UNAUTHENTICATED.name, 0.0)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token must come with the request.")
        raise AssertionError  # abort raises

    async def _guarded(self, handle: Handle, kind: str, messages: Any, context: Any) -> bytes:
        """Answer with the bound on requests in flight kept, and every error a status of gRPC's.

        A call has one message. It is awaited here, not by gRPC, so that the time for the call bounds it too.
        """
        began, code, why, trailing = time.perf_counter(), grpc.StatusCode.INTERNAL, "", ()
        left = context.time_remaining()
        seconds = self.settings.timeout if left is None else min(left, self.settings.timeout)
        until = asyncio.get_running_loop().time() + seconds
        try:
            with self.admission.one():
                async with asyncio.timeout_at(until):
                    body = await anext(aiter(messages))
                answer = await handle(body, context, until)
            code = grpc.StatusCode.OK
            return answer
        except FullError as error:
            code, why = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except (WireError, DecodeError) as error:
            code, why = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except grpc.aio.AioRpcError as error:  # of the server behind, or that it cannot be reached
            code, why, trailing = error.code(), error.details() or "", error.trailing_metadata() or ()
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            why = f"the call must come, and its images be transformed, within {seconds:g} seconds."
        except StopAsyncIteration:
            code, why = grpc.StatusCode.INVALID_ARGUMENT, "the call must have a message: it has none."
        except asyncio.CancelledError:  # the client went away
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            _LOG.exception("gRPC %s", kind)
            why = "the gateway failed; its log says why."
        finally:
            self.metrics.request(kind, code.name, time.perf_counter() - began)
        await context.abort(code, why, trailing)
        raise AssertionError  # abort raises

    def _knows_token(self, metadata: Any) -> bool:
        if self.settings.token is None:
            return True
        given = dict(metadata or ()).get("authorization", "")
        return hmac.compare_digest(str(given).encode(), f"Bearer {self.settings.token}".encode())

    async def _infer(self, body: bytes, context: Any, until: float) -> bytes:
        request = service_pb2.ModelInferRequest.FromString(body)
        if self.settings.models and request.model_name not in self.settings.models:
            return await self._ask(f"{_SERVICE}ModelInfer", body, context, until)
        with self.batcher.coming() as transform:
            message = await asyncio.to_thread(tensors_of, request)
            found = self.images.find(message)
            x = await asyncio.to_thread(self.images.read, found)
            async with asyncio.timeout_at(until):
                with self.metrics.transforming(len(x)):
                    made = await transform(x)
        put(request, self.images.put(message, found, made)[found.name])
        with self.metrics.asking():
            return await self._ask(f"{_SERVICE}ModelInfer", request.SerializeToString(), context, until)

    async def _ask(self, method: str, body: bytes, context: Any, until: float) -> bytes:
        left = max(0.0, until - asyncio.get_running_loop().time())
        call = self.channel.unary_unary(method)
        answer: bytes = await call(body, timeout=left, metadata=self._passed_on(context))
        return answer

    def _passed_on(self, context: Any) -> list[tuple[str, Any]]:
        """Return what a client says beside its request, but for what is between it and this gateway."""
        own = {"user-agent", "te", "content-type"}
        if self.settings.token is not None or self.settings.upstream_token is not None:
            own.add("authorization")
        said = [(key, value) for key, value in context.invocation_metadata() or () if key not in own]
        passed = [(key, value) for key, value in said if not key.startswith(("grpc-", ":"))]
        token = self.settings.upstream_token
        return [*passed, *([] if token is None else [("authorization", f"Bearer {token}")])]


def tensors_of(request: Any) -> Message:
    """Return the tensors of a ModelInferRequest.

    Raises:
        WireError: it is not as the protocol wants it.
    """
    raw, tensors = list(request.raw_input_contents), []
    if raw and len(raw) != len(request.inputs):
        raise WireError(f"raw_input_contents must be one for each input: got {len(raw)} for {len(request.inputs)}.")
    for number, one in enumerate(request.inputs):
        where, shape = f"inputs[{number}]", list(one.shape)
        if len(shape) > MOST_DIMENSIONS:
            raise WireError(f"{where} must have at most {MOST_DIMENSIONS} dimensions: got {len(shape)}.")
        if one.datatype not in DATATYPES:
            raise WireError(f"{where} must have a datatype of {', '.join(DATATYPES)}: got {one.datatype!r}.")
        if any(size < 0 for size in shape):
            raise WireError(f"{where} must have a shape of whole numbers: got {shape}.")
        if "shared_memory_region" in one.parameters:
            raise WireError(f"{where} must come in the request: shared memory of another machine cannot be read.")
        count = math.prod(shape)
        values = from_bytes(memoryview(raw[number]), one.datatype, count, where) if raw else _listed(one, count, where)
        tensors.append(WireTensor(one.name, one.datatype, shaped(values, shape, where)))
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise WireError(f"each tensor must have a name of its own: got {', '.join(names)}.")
    return Message(tuple(tensors))


def put(request: Any, tensor: WireTensor) -> None:
    """Put a tensor's values in the place of those that a ModelInferRequest has under its name."""
    number = next(number for number, one in enumerate(request.inputs) if one.name == tensor.name)
    if request.raw_input_contents:
        request.raw_input_contents[number] = to_bytes(tensor.values, tensor.datatype)
    else:
        values = getattr(request.inputs[number].contents, _LISTS[tensor.datatype])
        values[:] = tensor.values.reshape(-1).tolist()


def _listed(one: Any, count: int, where: str) -> np.ndarray[Any, Any]:
    if one.datatype not in _LISTS:
        raise WireError(f"{where} must come in raw_input_contents: {one.datatype} has no list.")
    values = list(getattr(one.contents, _LISTS[one.datatype]))
    if len(values) != count:
        raise WireError(f"{where} must have {count} values by its shape: got {len(values)}.")
    made = np.empty(count, dtype=DATATYPES[one.datatype])
    try:
        made[:] = values
    except OverflowError as error:
        raise WireError(f"{where} must fit {one.datatype}: {error}.") from error
    return made
