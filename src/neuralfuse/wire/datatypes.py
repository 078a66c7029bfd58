"""The protocol's datatypes: NumPy dtypes, and values as JSON or bytes."""

from __future__ import annotations

import base64
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralfuse.errors import NeuralFuseError

Array = NDArray[Any]


class WireError(NeuralFuseError, ValueError):
    """A message does not follow the protocol."""


DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),  # as raw bits: NumPy has no bfloat16
    "BYTES": np.dtype(object),
}
"""NumPy dtype of each datatype, little-endian."""

_FLOATS = {"FP16", "FP32", "FP64"}
_LENGTH = 4  # bytes of the length before each element of BYTES


def from_json(values: Any, datatype: str, count: int, where: str) -> Array:
    """Return ``count`` values as a flat array, from flat or nested JSON lists; null among floats becomes NaN.

    Raises:
        WireError: the values do not fit the datatype, or their number is not ``count``.
    """
    if datatype == "BF16":
        raise WireError(f"{where} must be binary: JSON has no BF16.")
    flat = _flatten(values, where)
    if len(flat) != count:
        raise WireError(f"{where} must have {count} values by its shape: got {len(flat)}.")
    kinds = set(map(type, flat))
    if datatype == "BYTES":
        _check(kinds, {str}, datatype, where)
        made = np.empty(count, dtype=object)
        made[:] = [value.encode() for value in flat]
        return made
    numbers: set[type] = {int, float, type(None)} if datatype in _FLOATS else {int}
    _check(kinds, {bool} if datatype == "BOOL" else numbers, datatype, where)
    if type(None) in kinds:
        flat = [np.nan if value is None else value for value in flat]
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=DATATYPES[datatype])
    except (OverflowError, ValueError) as error:
        raise WireError(f"{where} must fit {datatype}: {error}.") from error


def to_json(values: Array, datatype: str) -> list[Any]:
    """Return a flat list for JSON. NaN and infinity become null; bytes that are not UTF-8 become base64."""
    flat = values.reshape(-1)
    if datatype == "BYTES":
        return [_text(value) for value in flat]
    if datatype in _FLOATS and not np.isfinite(flat).all():
        return [value if np.isfinite(value) else None for value in flat.tolist()]
    return list(flat.tolist())


def from_bytes(data: memoryview, datatype: str, count: int, where: str) -> Array:
    """Return ``count`` values as a flat array, from their bytes.

    Raises:
        WireError: the bytes do not hold exactly ``count`` values of the datatype.
    """
    if datatype != "BYTES":
        kind = DATATYPES[datatype]
        if len(data) != count * kind.itemsize:
            raise WireError(f"{where} must have {count * kind.itemsize} bytes by its shape: got {len(data)}.")
        if datatype == "BOOL" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
            raise WireError(f"{where} must have bytes 0 or 1 for BOOL.")
        return np.frombuffer(data, dtype=kind)
    found, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + _LENGTH], "little")
        start = place + _LENGTH
        if start + size > len(data):
            raise WireError(f"{where} must have a length before each element: the data ends early.")
        found.append(bytes(data[start : start + size]))
        place = start + size
    if len(found) != count:
        raise WireError(f"{where} must have {count} elements by its shape: got {len(found)}.")
    made = np.empty(count, dtype=object)
    made[:] = found
    return made


def to_bytes(values: Array, datatype: str) -> bytes:
    """Return the bytes of an array."""
    if datatype != "BYTES":
        return np.ascontiguousarray(values, dtype=DATATYPES[datatype]).tobytes()
    return b"".join(len(value).to_bytes(_LENGTH, "little") + value for value in values.reshape(-1))


def _flatten(values: Any, where: str) -> list[Any]:
    if not isinstance(values, list):
        raise WireError(f"{where} must have its data as a list: got a {type(values).__name__}.")
    while values and isinstance(values[0], list):
        if not all(isinstance(value, list) for value in values):
            raise WireError(f"{where} must nest its lists evenly.")
        values = list(chain.from_iterable(values))
    return list(values)


def _check(kinds: set[type], wanted: set[type], datatype: str, where: str) -> None:
    if not kinds <= wanted:
        odd = ", ".join(sorted(kind.__name__ for kind in kinds - wanted))
        raise WireError(f"{where} must hold values of {datatype}: got {odd}.")


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
