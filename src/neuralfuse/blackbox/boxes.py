"""The interface of a black-box model, and the models that run in this process."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from neuralfuse.errors import AnswerError, BusyError, FileFormatError, MissingExtraError
from neuralfuse.ranges import InputRange

IMAGE_TYPES = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}
"""Types of image inputs, by the protocol's names."""
_ONNX = {"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(uint8)": "UINT8"}
Layout = Literal["nchw", "nhwc"]


class Box(ABC):
    """A black-box model.

    Attributes:
        name: Name of the model, for records and for the cache of answers.
    """

    name: str

    @property
    def key(self) -> str:
        """Key of the cache: everything besides the image that an answer depends on."""
        return self.name

    @property
    def options(self) -> dict[str, str]:
        """Options that differ from their defaults, for records."""
        return {}

    @abstractmethod
    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Return the model's output, one row per image.

        Args:
            x: Inputs in the model's own space, (N, C, H, W).

        Raises:
            AnswerError: the model refuses the query, or its output is invalid; a retry would not help.
            BusyError: the query failed; a retry may help.
        """

    def close(self) -> None:
        """Close files and connections."""
        return


class Function(Box):
    """A Python function from float32 (N, C, H, W) to one row per image.

    A query that raises ConnectionError, TimeoutError or `BusyError` may be retried.
    """

    def __init__(self, function: Callable[[NDArray[np.float32]], Any], name: str) -> None:
        self.function, self.name = function, name

    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """See `Box`."""
        try:
            made = self.function(x)
        except BusyError:
            raise
        except (ConnectionError, TimeoutError) as error:
            raise BusyError(f"{self.name} must answer: it raised {type(error).__name__}: {error}.") from error
        except Exception as error:  # the user's code may raise anything
            raise AnswerError(f"{self.name} must answer: it raised {type(error).__name__}: {error}.") from error
        return check_rows(np.asarray(made), len(x), self.name)


class TensorBox(Box):
    """A black-box model with named input and output tensors of a given type and layout.

    Attributes:
        input_name: Name of the input for images.
        output_name: Name of the output with the answers.
        datatype: Type of the input, a key of `IMAGE_TYPES`.
        input_range: Value range of the model's inputs.
        layout: Order of the images' axes.
    """

    input_name: str
    output_name: str
    datatype: str
    input_range: InputRange
    layout: Layout

    @property
    def key(self) -> str:
        """See `Box`."""
        space = f" {self.input_range}" if self.datatype == "UINT8" else ""
        order = "".join(f" {value}" for value in self.options.values())
        return f"{self.name} {self.input_name} {self.datatype} {self.output_name}{space}{order}"

    @property
    def options(self) -> dict[str, str]:
        """See `Box`."""
        return {} if self.layout == "nchw" else {"layout": self.layout}

    def encode(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Return inputs (N, C, H, W) in the model's type and layout; UINT8 is the nearest of 256 levels."""
        if self.datatype == "UINT8":
            made = self.input_range.to_bytes(torch.from_numpy(x)).numpy()
        else:
            made = x.astype(IMAGE_TYPES[self.datatype])
        return made if self.layout == "nchw" else np.ascontiguousarray(made.transpose(0, 2, 3, 1))


class OnnxFile(TensorBox):
    """A model in an ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        input_name: Name of the input for images; needed if the model has several inputs.
        output_name: Name of the output with the answers; needed if the model has several outputs.
        input_range: Value range of the model's inputs; used if the model takes uint8 pixels.
        layout: Order of the images' axes.

    Raises:
        FileFormatError: ONNX Runtime cannot load the file, or the model lacks such an input or output.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        input_range: InputRange | None = None,
        layout: Layout = "nchw",
    ) -> None:
        try:
            import onnx  # noqa: F401, PLC0415
            import onnxruntime  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError("an ONNX file needs ONNX Runtime: pip install 'neuralfuse[onnx]'.") from error
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            digest = _digest(path)
        except Exception as error:  # ONNX Runtime has errors of its own
            reason = str(error).splitlines()[0]
            raise FileFormatError(f"{path} must be an ONNX file that ONNX Runtime can load: {reason}.") from error
        self.name = f"onnx:{digest}"
        self.input_range, self.layout = input_range or InputRange(), layout
        types = {one.name: one.type for one in self.session.get_inputs()}
        self.input_name = _select("input", list(types), input_name)
        if types[self.input_name] not in _ONNX:
            legal = ", ".join(_ONNX)
            raise FileFormatError(f"{path} must take {legal}: {self.input_name} is {types[self.input_name]}.")
        self.datatype = _ONNX[types[self.input_name]]
        self.output_name = _select("output", [one.name for one in self.session.get_outputs()], output_name)

    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """See `Box`."""
        try:
            (made,) = self.session.run([self.output_name], {self.input_name: self.encode(x)})
        except Exception as error:  # ONNX Runtime has errors of its own
            raise AnswerError(f"the ONNX model must take {x.shape}: {str(error).splitlines()[0]}.") from error
        return check_rows(made, len(x), self.name)


def check_rows(made: NDArray[Any], count: int, name: str) -> NDArray[Any]:
    """Return a model's output as (N,) or (N, k), without trailing axes of length 1.

    Raises:
        AnswerError: the output does not have one row per image.
    """
    if made.ndim > 2 and made.size == made.shape[0] * made.shape[1]:
        made = made.reshape(made.shape[:2])
    if made.ndim not in (1, 2) or len(made) != count or made.dtype == object:
        raise AnswerError(
            f"{name} must answer with one row of numbers per image: got {made.dtype} of shape {made.shape} for {count}."
        )
    return made


def _digest(path: Path) -> str:
    """Return a digest of an ONNX file and of its external weight files."""
    import onnx  # noqa: PLC0415

    digest = hashlib.sha256(path.read_bytes())
    places = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for place in sorted(places):
        digest.update((path.parent / place).read_bytes())
    return digest.hexdigest()[:16]


def _select(what: str, names: list[str], wanted: str | None) -> str:
    """Return the wanted name, or the only one."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        raise FileFormatError(f"--{what}-name must be one of the model's {what}s: {', '.join(names)}. Got {wanted}.")
    return wanted
