"""Requests and answers of the protocol: one JSON object, and behind it the bytes of the tensors that are binary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from neuralfuse.errors import MissingExtraError
from neuralfuse.wire.datatypes import DATATYPES, Array, WireError, from_bytes, from_json, to_bytes, to_json

HEADER = "Inference-Header-Content-Length"
Key = Literal["inputs", "outputs"]
MOST_DIMENSIONS = 32
"""Of a tensor in a message."""


@dataclass(frozen=True)
class WireTensor:
    """A named tensor of a message.

    Attributes:
        name: As the model's metadata says.
        datatype: A key of `DATATYPES`.
        values: Of the datatype's NumPy type (BYTES: bytes objects; BF16: its bits), in the tensor's shape.
        parameters: Whatever else the message says of it.
    """

    name: str
    datatype: str
    values: Array
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.values.shape)


@dataclass(frozen=True)
class Message:
    """A request (tensors are its inputs) or an answer (its outputs).

    Attributes:
        tensors: In the message's order.
        other: All else that the JSON object holds; for a request also its ``outputs``, the ones that are asked for.
    """

    tensors: tuple[WireTensor, ...]
    other: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> WireTensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    @property
    def names(self) -> list[str]:
        """Of its tensors."""
        return [tensor.name for tensor in self.tensors]

    def with_values(self, name: str, values: Array) -> Message:
        """Return the same with other values in one tensor."""
        return replace(
            self, tensors=tuple(replace(one, values=values) if one.name == name else one for one in self.tensors)
        )


def decode(body: bytes, header_length: int | None, key: Key) -> Message:
    """Return the message that lies in a body.

    Args:
        body: JSON, and if ``header_length`` is given, binary tensors behind its first so many bytes.
        header_length: Of the header `HEADER`.
        key: Where the tensors are: ``inputs`` of a request, ``outputs`` of an answer.

    Raises:
        WireError: the body is no such message; the line says why.
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
        raise WireError(f"the body must end with its last tensor: {len(rest)} more bytes came.")
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        raise WireError(f"each tensor must have a name of its own: got {', '.join(names)}.")
    return Message(tuple(tensors), value)


def encode(message: Message, key: Key, *, binary: bool | set[str] = False) -> tuple[bytes, int | None]:
    """Return a message's body, and the value of `HEADER` where some tensor is binary.

    Args:
        message: What to write.
        key: ``inputs`` of a request, ``outputs`` of an answer.
        binary: Which tensors are written as bytes: all, none, or these names. BF16 always is.
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
    """Return a tensor, and how many of the bytes behind the JSON are its own."""
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
        or len(shape) > MOST_DIMENSIONS
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
        return WireTensor(name, datatype, shaped(values, shape, where), parameters), 0
    if type(size) is not int or not 0 <= size <= len(rest):
        raise WireError(f"{where} must have a binary_data_size in 0..{len(rest)}, what is left: got {size!r}.")
    if "data" in one:
        raise WireError(f"{where} must have its data as JSON or as bytes: got both.")
    values = from_bytes(rest[:size], datatype, count, where)
    return WireTensor(name, datatype, shaped(values, shape, where), parameters), size


def shaped(values: Array, shape: list[int], where: str) -> Array:
    """Return values in the shape that a message says.

    Raises:
        WireError: there can be no such array.
    """
    try:
        return values.reshape(shape)
    except (ValueError, OverflowError) as error:  # no values, but sizes beyond all bounds
        raise WireError(f"{where} must have a shape that can be: got {shape}.") from error


def _parsed(text: bytes) -> Any:
    try:
        return _orjson().loads(text)
    except ValueError as error:  # its decode error is one
        raise WireError(f"the body must be JSON: {error}.") from error


def _orjson() -> Any:
    try:
        import orjson  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("the protocol needs orjson: pip install 'neuralfuse[serve]'.") from error
    return orjson
