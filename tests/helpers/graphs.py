"""Small ONNX files, written node by node."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WEIGHTS = np.random.RandomState(0).randn(3 * 6 * 8, 4).astype(np.float32)


def logits(x: np.ndarray) -> np.ndarray:
    """What the files compute of images (N, 3, 6, 8) on [-1, 1]: four logits."""
    return x.reshape(len(x), -1) @ WEIGHTS


def write_onnx(
    path: Path, kind: str = "FLOAT", *, last: bool = False, both: bool = False, beside: bool = False
) -> Path:
    """Write a linear model that takes images as it wants them.

    Args:
        path: Where.
        kind: ONNX's name for the type of its inputs; bytes are 0..255.
        last: Whether its images have the channels last.
        both: Whether it has two outputs, good and bad, the second the first's opposite, rather than logits.
        beside: Whether its weights lie in a file beside it.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape = ["batch", 6, 8, 3] if last else ["batch", 3, 6, 8]
    constants = {"half": np.float32(127.5), "one": np.float32(1), "weights": WEIGHTS}
    nodes, at = [helper.make_node("Cast", ["image"], ["x0"], to=TensorProto.FLOAT)], "x0"
    if kind == "UINT8":
        nodes += [helper.make_node("Div", [at, "half"], ["x1"]), helper.make_node("Sub", ["x1", "one"], ["x2"])]
        at = "x2"
    if last:
        nodes.append(helper.make_node("Transpose", [at], ["x3"], perm=[0, 3, 1, 2]))
        at = "x3"
    names = ["good", "bad"] if both else ["logits"]
    nodes += [helper.make_node("Flatten", [at], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], names[:1])]
    nodes += [helper.make_node("Neg", names[:1], names[1:])] if both else []
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", getattr(TensorProto, kind), shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in names],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(exist_ok=True)
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0} if beside else {}
    onnx.save_model(made, path, **options)
    return path
