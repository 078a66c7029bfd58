"""Requests and responses of the protocol: one JSON object, followed by the bytes of its binary tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from neuralfuse.errors import MissingExtraError
from neuralfuse.wire.datatypes import DATATYPES, Array, WireError, from_bytes, from_json, to_bytes, to_json

HEADER = "Inference-Header-Content-Length"
"""HTTP header with the length of the JSON, for a body with binary tensors."""
Key = Literal["inputs", "outputs"]
MAX_DIMENSIONS = 32
"""Most dimensions of a tensor in a message."""


@dataclass(frozen=True)
class WireTensor:
    """A named tensor of a message.

    Attributes:
        name: Name in the model's metadata.
        datatype: A key of `DATATYPES`.
        values: Array of the datatype's NumPy dtype (see `DATATYPES`), in the tensor's shape.
        parameters: The tensor's other parameters in the message.
    """

    name: str
    datatype: str
    values: Array
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.values.shape)


@dataclass(frozen=True)
class Message:
    """A request, whose tensors are inputs, or a response, whose tensors are outputs.

    Attributes:
        tensors: The tensors, in the message's order.
        other: All other fields of the JSON object, such as a request's ``outputs``, the outputs that it asks for.
    """

    tensors: tuple[WireTensor, ...]
    other: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> WireTensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return [tensor.name for tensor in self.tensors]

    def with_values(self, name: str, values: Array) -> Message:
        """Return the message with other values in one tensor."""
        return replace(
            self, tensors=tuple(replace(one, values=values) if one.name == name else one for one in self.tensors)
        )


def decode(body: bytes, header_length: int | None, key: Key) -> Message:
    """Return the message in an HTTP body.

    Args:
        body: JSON, followed by the binary tensors if there are any.
        header_length: Bytes of the JSON, from the HTTP header `HEADER`; None if the body is JSON alone.
        key: Field of the tensors: ``inputs`` of a request, ``outputs`` of a response.

    Raises:
        WireError: the body does not follow the protocol.
    """
    size = len(body) if header_length is None else header_length
    if not 0 <= size <= len(body):
        raise WireError(f"{HEADER} must be in 0..{len(body)}, the length of the body: got {size}.")
    value = _parsed(body[:size])
    if not isinstance(value, dict):
        raise WireError(f"the body must be one JSON object: got a {type(value).__name__}.")
    found = value.pop(key, None)
    if not isinstance(found, list) or not found:
        raise WireError(f"the body must have {key}, a list of tensors.")
    rest, tensors = memoryview(body)[size:], []
    for number, one in enumerate(found):
        tensor, used = _tensor(one, rest, f"{key}[{number}]")
        rest = rest[used:]
        tensors.append(tensor)
    if len(rest):
        raise WireError(f"the body must end with its last tensor: got {len(rest)} extra bytes.")
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise WireError(f"tensor names must be unique: got {', '.join(names)}.")
    return Message(tuple(tensors), value)


def encode(message: Message, key: Key, *, binary: bool | set[str] = False) -> tuple[bytes, int | None]:
    """Return a message's HTTP body, and the value of `HEADER` (None if no tensor is binary).

    Args:
        message: The message.
        key: ``inputs`` of a request, ``outputs`` of a response.
        binary: Which tensors are binary: all, none, or these names. BF16 always is.
    """
    described, parts = [], []
    for tensor in message.tensors:
        parameters = {name: value for name, value in tensor.parameters.items() if name != "binary_data_size"}
        one: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
        if tensor.datatype == "BF16" or (tensor.name in binary if isinstance(binary, set) else binary):
            part = to_bytes(tensor.values, tensor.datatype)
            parameters["binary_data_size"] = len(part)
            parts.append(part)
        else:
            one["data"] = to_json(tensor.values, tensor.datatype)
        described.append({**one, **({"parameters": parameters} if parameters else {})})
    head = _orjson().dumps({**message.other, key: described})
    return b"".join([head, *parts]), len(head) if parts else None


def _tensor(one: Any, rest: memoryview, where: str) -> tuple[WireTensor, int]:
    """Return a tensor, and how many bytes of ``rest``, the binary data, are its own."""
    if not isinstance(one, dict):
        raise WireError(f"{where} must be an object: got a {type(one).__name__}.")
    name, datatype, shape = (one.get(field) for field in ("name", "datatype", "shape"))
    parameters = one.get("parameters") or {}
    if not isinstance(name, str) or not name:
        raise WireError(f"{where} must have a name.")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise WireError(f"{where} must have a datatype of {', '.join(DATATYPES)}: got {datatype!r}.")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise WireError(f"{where} must have a shape, a list of whole numbers: got {shape!r}.")
    if not isinstance(parameters, dict):
        raise WireError(f"{where} must have an object as parameters: got a {type(parameters).__name__}.")
    if "shared_memory_region" in parameters:
        raise WireError(f"{where} must come in the body: shared memory of another machine cannot be read.")
    count, size = math.prod(shape), parameters.get("binary_data_size")
    if size is None:
        values = from_json(one.get("data"), datatype, count, where)
        return WireTensor(name, datatype, reshape(values, shape, where), parameters), 0
    if type(size) is not int or not 0 <= size <= len(rest):
        raise WireError(f"{where} must have a binary_data_size in 0..{len(rest)}, the bytes left: got {size!r}.")
    if "data" in one:
        raise WireError(f"{where} must have its data as JSON or as bytes: got both.")
    values = from_bytes(rest[:size], datatype, count, where)
    return WireTensor(name, datatype, reshape(values, shape, where), parameters), size


def reshape(values: Array, shape: list[int], where: str) -> Array:
    """Return values in the shape that a message states.

    Raises:
        WireError: NumPy cannot make an array of this shape.
    """
    try:
        return values.reshape(shape)
    except (ValueError, OverflowError) as error:  # no values, but a size that is too large
        raise WireError(f"{where} must have a shape that NumPy supports: got {shape}.") from error


def _parsed(text: bytes) -> Any:
    try:
        return _orjson().loads(text)
    except ValueError as error:  # orjson's error is a ValueError
        raise WireError(f"the body must be JSON: {error}.") from error


def _orjson() -> Any:
    try:
        import orjson  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the protocol needs orjson: pip install 'neuralfuse[serve]'.") from error
    return orjson
