"""The Open Inference Protocol: what is written is what is read, and nothing else is taken for a message."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuralfuse.wire import DATATYPES, Message, WireError, WireTensor, decode, encode

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
FLAT = ("BOOL", "INT8", "INT64", "UINT8", "UINT64", "FP16", "FP32", "FP64", "BF16")


@st.composite
def tensors(draw, name="x"):
    datatype = draw(st.sampled_from([*FLAT, "BYTES"]))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        values = np.empty(shape, dtype=object)
        for place in np.ndindex(shape):
            values[place] = draw(st.text(max_size=4)).encode()
    else:
        finite = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
        kind = DATATYPES[datatype]
        values = draw(hnp.arrays(kind, shape, elements=hnp.from_dtype(kind, **finite)))
    return WireTensor(name, datatype, values, {"content_type": "np"})


@settings(deadline=None)
@given(first=tensors("x"), second=tensors("y"), binary=st.sampled_from([True, False, {"x"}, {"y"}]))
def test_a_message_comes_back_as_it_was(first, second, binary):
    message = Message((first, second), {"id": "7", "parameters": {"k": 1}})
    body, length = encode(message, "inputs", binary=binary)
    got = decode(body, length, "inputs")
    assert got.other == message.other and got.names == ["x", "y"]
    for tensor in (first, second):
        back = got[tensor.name]
        assert back.datatype == tensor.datatype and back.shape == tensor.shape
        assert back.values.dtype == DATATYPES[tensor.datatype]
        assert np.array_equal(back.values, tensor.values)
        assert back.parameters["content_type"] == "np"
    assert (length is None) == (not binary and "BF16" not in (first.datatype, second.datatype)) or length is not None


def test_bytes_are_those_of_the_protocol():
    """Written out by hand from the protocol's binary extension."""
    x = WireTensor("x", "FP32", np.array([[1.0, -2.5]], dtype=np.float32))
    words = np.empty(2, dtype=object)
    words[:] = [b"ab", b""]
    body, length = encode(Message((x, WireTensor("s", "BYTES", words))), "inputs", binary=True)
    head = json.loads(body[:length])
    assert head["inputs"][0] == {
        "name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}
    }  # fmt: skip
    assert head["inputs"][1]["parameters"] == {"binary_data_size": 4 + 2 + 4}
    assert body[length:] == struct.pack("<ff", 1.0, -2.5) + b"\x02\0\0\0ab" + b"\0\0\0\0"
    nested = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "INT8", "data": [[1, 2], [3, -4]]}]}
    assert decode(json.dumps(nested).encode(), None, "inputs")["x"].values.tolist() == [[1, 2], [3, -4]]


def test_what_json_has_not_is_null():
    """A faulty model answers with such numbers, and a server says them so."""
    x = WireTensor("x", "FP32", np.array([1.0, np.nan, np.inf], dtype=np.float32))
    body, _ = encode(Message((x,)), "outputs")
    assert json.loads(body)["outputs"][0]["data"] == [1.0, None, None]
    assert np.isnan(decode(body, None, "outputs")["x"].values).tolist() == [False, True, True]
    body, length = encode(Message((x,)), "outputs", binary=True)
    assert np.array_equal(decode(body, length, "outputs")["x"].values, x.values, equal_nan=True)


def one(**changes) -> bytes:
    fields = {"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 2]} | changes
    tensor = {key: value for key, value in fields.items() if value is not None}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be JSON"),
        (b"[1]", "one JSON object"),
        (b"{}", "must have inputs"),
        (b'{"inputs": [1]}', r"inputs\[0\] must be an object"),
        (one(name=""), "must have a name"),
        (one(datatype="FLOAT"), "datatype of BOOL, .*: got 'FLOAT'"),
        (one(shape=[2.0]), "must have a shape"),
        (one(shape=[True, True]), "must have a shape"),
        (one(shape=[-1]), "must have a shape"),
        (one(shape=[1] * 33), "must have a shape"),
        (one(shape=[0, 2**64], data=[]), "must have a shape"),
        (one(shape=[0, 2**63], data=[]), "must have a shape that NumPy supports"),
        (one(shape=[2**62, 2**62, 0], data=[]), "must have a shape that NumPy supports"),
        (one(shape=[3]), "must have 3 values by its shape: got 2"),
        (one(data=None), "its data as a list: got a NoneType"),
        (one(data=[1, 300]), "must fit UINT8"),
        (one(data=[1, 2.5]), "values of UINT8: got float"),
        (one(data=[1, True]), "values of UINT8: got bool"),
        (one(data=[[1], 2]), "must nest its lists evenly"),
        (one(data=[1, [2]]), "values of UINT8: got list"),
        (one(data=[1, None]), "values of UINT8: got NoneType"),
        (one(datatype="FP32", data=[1, "2"]), "values of FP32: got str"),
        (one(datatype="FP32", data=[1, 10**400]), "must"),
        (one(datatype="BYTES"), "values of BYTES: got int"),
        (one(datatype="BF16"), "JSON has no BF16"),
        (one(parameters=[]) + b" ", None),
        (one(parameters=[1]), "an object as parameters"),
        (one(parameters={"shared_memory_region": "a"}), "must come in the body"),
        (one(parameters={"binary_data_size": 1}), r"binary_data_size in 0..0, the bytes left: got 1"),
        (one(parameters={"binary_data_size": True}), "binary_data_size"),
        (one(parameters={"binary_data_size": 0}), "as JSON or as bytes: got both"),
        (one(parameters={"binary_data_size": 0}, data=None), "must have 2 bytes by its shape: got 0"),
        (b'{"inputs": [%s, %s]}' % ((one()[12:-2],) * 2), "names must be unique: got x, x"),
    ],
)
def test_what_is_no_message_is_refused(body, message):
    if message is None:
        assert decode(body, None, "inputs").names == ["x"]
        return
    with pytest.raises(WireError, match=message):
        decode(body, None, "inputs")


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"),
    [
        ("FP32", [2], b"1234567", "must have 8 bytes by its shape: got 7"),
        ("BOOL", [2], b"\0\2", "0 or 1 for BOOL"),
        ("BYTES", [1], b"\x05\0\0\0abc", "a length before each element"),
        ("BYTES", [1], b"\x05\0", "a length before each element"),
        ("BYTES", [2], b"\x01\0\0\0a", "must have 2 elements by its shape: got 1"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(datatype, shape, data, message):
    head = one(datatype=datatype, shape=shape, data=None, parameters={"binary_data_size": len(data)})
    with pytest.raises(WireError, match=message):
        decode(head + data, len(head), "inputs")
    with pytest.raises(WireError, match=r"must be in 0\.\."):
        decode(head + data, len(head + data) + 1, "inputs")
    with pytest.raises(WireError, match=r"must be in 0\.\."):
        decode(head + data, -1, "inputs")


def test_bytes_that_are_left_over_are_refused():
    body, length = encode(Message((WireTensor("x", "UINT8", np.zeros(2, np.uint8)),)), "inputs", binary=True)
    with pytest.raises(WireError, match="got 1 extra bytes"):
        decode(body + b"\0", length, "inputs")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size"]), inner, max_size=5
    ),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    tensor=st.fixed_dictionaries({}, optional={
        "name": st.text(max_size=2) | JSON, "datatype": st.sampled_from(list(DATATYPES)) | JSON,
        "shape": st.lists(st.integers(0, 3) | st.integers(2**31, 2**65), max_size=3) | JSON,
        "data": st.lists(st.integers(-1, 300)) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9) | JSON}) | JSON,
    }),
    tail=st.binary(max_size=9), length=st.none() | st.integers(-2, 90), cut=st.integers(0, 100),
)  # fmt: skip
def test_nothing_else_is_raised_whatever_comes(tensor, tail, length, cut):
    head = json.dumps({"inputs": [tensor]}).encode()
    for body, size in ((head, None), (head + tail, len(head)), (head + tail, length), (head[:cut], None), (tail, None)):
        try:
            message = decode(body, size, "inputs")
        except WireError:
            continue
        again = decode(*encode(message, "inputs", binary=True), "inputs")
        assert again.names == message.names
