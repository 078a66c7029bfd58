"""Translation between binary tensors and JSON, for an upstream server that takes JSON only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralfuse.wire import HEADER, Message, WireError, decode, encode

BINARY = "binary_tensor_data"
"""The protocol extension of servers that take binary tensors."""
_BINARY_PARAMETERS = ("binary_data", "binary_data_output")
_JSON, _BYTES = "application/json", "application/octet-stream"


@dataclass(frozen=True)
class BinaryOutputs:
    """Which outputs a client wants as binary tensors.

    Attributes:
        default: The choice for outputs that the request does not mention.
        by_name: The choice for each output that it mentions.
    """

    default: bool
    by_name: Mapping[str, bool]

    @staticmethod
    def of(request: Message) -> BinaryOutputs:
        """Return the choices that a request makes.

        Raises:
            WireError: its parameters or outputs do not follow the protocol.
        """
        parameters, outputs = request.other.get("parameters") or {}, request.other.get("outputs") or []
        if not isinstance(parameters, dict):
            raise WireError(f"parameters must be an object: got a {type(parameters).__name__}.")
        if not isinstance(outputs, list) or not all(isinstance(one, dict) and "name" in one for one in outputs):
            raise WireError("outputs must be a list of objects with a name.")
        default = parameters.get("binary_data_output") is True
        by_name = {}
        for one in outputs:
            own = one.get("parameters") or {}
            if not isinstance(own, dict) or not isinstance(one["name"], str):
                raise WireError("each output must have a string as name and an object as parameters.")
            by_name[one["name"]] = own.get("binary_data", default) is True
        return BinaryOutputs(default, by_name)

    @property
    def wants_any(self) -> bool:
        """Whether any output is wanted as a binary tensor."""
        return self.default or any(self.by_name.values())

    def wants(self, name: str) -> bool:
        """Say whether this output is wanted as a binary tensor."""
        return self.by_name.get(name, self.default)


def encode_request(request: Message, takes_binary: bool) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request, in the form that the upstream server takes.

    Raises:
        WireError: the server takes JSON only, and JSON would change an input.
    """
    if not takes_binary:
        _check_json(request)
        request = replace(request, other=_without_binary(request.other))
    body, length = encode(request, "inputs", binary=takes_binary)
    if length is None:
        return body, {"content-type": _JSON}
    return body, {"content-type": _BYTES, HEADER: str(length)}


def _check_json(request: Message) -> None:
    """Raise a `WireError` if JSON would change an input."""
    why = "the upstream server takes JSON only"
    for one in request.tensors:
        if one.datatype.startswith("FP") and not np.isfinite(one.values).all():
            raise WireError(f"{one.name} must be finite: {why}, which has no NaN or infinity.")
        if one.datatype == "BF16":
            raise WireError(f"{one.name} must be of another type: {why}, which has no BF16.")
        if one.datatype == "BYTES":
            try:
                b"".join(one.values.reshape(-1)).decode()
            except UnicodeDecodeError as error:
                raise WireError(f"{one.name} must be UTF-8: {why}.") from error


def encode_response(body: bytes, outputs: BinaryOutputs) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a JSON response, in the form that the client wants.

    Raises:
        WireError: the response does not follow the protocol.
    """
    answer = decode(body, None, "outputs")
    wanted = {name for name in answer.names if outputs.wants(name)}
    made, length = encode(answer, "outputs", binary=wanted)
    if length is None:
        return made, {"content-type": _JSON}
    return made, {"content-type": _BYTES, HEADER: str(length)}


def _without_binary(other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's other fields without the parameters of the binary extension."""
    kept = dict(other)
    if "parameters" in kept:
        kept["parameters"] = _drop(kept["parameters"] or {})
    if "outputs" in kept:
        kept["outputs"] = [
            {**one, "parameters": _drop(one["parameters"])} if one.get("parameters") else one
            for one in kept["outputs"] or []
        ]
    return kept


def _drop(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in _BINARY_PARAMETERS}
