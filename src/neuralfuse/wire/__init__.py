"""Messages of the Open Inference Protocol (KServe v2, Triton): bytes <-> tensors, JSON and binary. No network here."""

from neuralfuse.wire.datatypes import DATATYPES, WireError, from_bytes, to_bytes
from neuralfuse.wire.messages import HEADER, MAX_DIMENSIONS, Message, WireTensor, decode, encode, reshape

__all__ = [
    "DATATYPES",
    "HEADER",
    "MAX_DIMENSIONS",
    "Message",
    "WireError",
    "WireTensor",
    "decode",
    "encode",
    "from_bytes",
    "reshape",
    "to_bytes",
]
