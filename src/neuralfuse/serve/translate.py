"""Between a client and a server that may not speak the same half of the protocol: JSON or binary tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralfuse.wire import HEADER, Message, WireError, decode, encode

BINARY = "binary_tensor_data"
_WISHES = ("binary_data", "binary_data_output")
_JSON, _BYTES = "application/json", "application/octet-stream"


@dataclass(frozen=True)
class Wishes:
    """Which outputs a client wants as bytes.

    Attributes:
        usual: Whether those that it says nothing of.
        named: What it says of outputs by name.
    """

    usual: bool
    named: Mapping[str, bool]

    @staticmethod
    def of(request: Message) -> Wishes:
        """Return what a request says.

        Raises:
            WireError: it says it in another form than the protocol's.
        """
        parameters, outputs = request.other.get("parameters") or {}, request.other.get("outputs") or []
        if not isinstance(parameters, dict):
            raise WireError(f"parameters must be an object: got a {type(parameters).__name__}.")
        if not isinstance(outputs, list) or not all(isinstance(one, dict) and "name" in one for one in outputs):
            raise WireError("outputs must be a list of objects with a name.")
        usual = parameters.get("binary_data_output") is True
        named = {}
        for one in outputs:
            own = one.get("parameters") or {}
            if not isinstance(own, dict) or not isinstance(one["name"], str):
                raise WireError("each of outputs must have a text as name and an object as parameters.")
            named[one["name"]] = own.get("binary_data", usual) is True
        return Wishes(usual, named)

    @property
    def binary(self) -> bool:
        """Whether any output is wanted as bytes."""
        return self.usual or any(self.named.values())

    def wants_bytes(self, name: str) -> bool:
        """Whether this one is."""
        return self.named.get(name, self.usual)


def for_upstream(request: Message, wishes: Wishes, takes_binary: bool) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request as the server takes it."""
    if not takes_binary:
        _check_json(request)
        request = replace(request, other=_without_wishes(request.other))
    body, length = encode(request, "inputs", binary=takes_binary)
    if length is None:
        return body, {"content-type": _JSON}
    return body, {"content-type": _BYTES, HEADER: str(length)}


def _check_json(request: Message) -> None:
    """Raise a `WireError` where JSON, all that the server takes, would change an input."""
    for one in request.tensors:
        if one.datatype.startswith("FP") and not np.isfinite(one.values).all():
            raise WireError(f"{one.name} must be finite: the server behind takes JSON, which has no other numbers.")
        if one.datatype == "BF16":
            raise WireError(f"{one.name} must be of another type: the server behind takes JSON, which has no BF16.")
        if one.datatype == "BYTES":
            try:
                b"".join(one.values.reshape(-1)).decode()
            except UnicodeDecodeError as error:
                raise WireError(f"{one.name} must be UTF-8: the server behind takes JSON.") from error


def for_client(body: bytes, wishes: Wishes) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a JSON answer as the client wants it.

    Raises:
        WireError: the answer is none of the protocol's.
    """
    answer = decode(body, None, "outputs")
    wanted = {name for name in answer.names if wishes.wants_bytes(name)}
    made, length = encode(answer, "outputs", binary=wanted)
    if length is None:
        return made, {"content-type": _JSON}
    return made, {"content-type": _BYTES, HEADER: str(length)}


def _without_wishes(other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's other fields without what a server that knows JSON alone would not understand."""
    kept = dict(other)
    if "parameters" in kept:
        kept["parameters"] = _without(kept["parameters"] or {})
    if "outputs" in kept:
        kept["outputs"] = [
            {**one, "parameters": _without(one["parameters"])} if one.get("parameters") else one
            for one in kept["outputs"] or []
        ]
    return kept


def _without(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in _WISHES}
