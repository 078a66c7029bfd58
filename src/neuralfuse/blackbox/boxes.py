"""One small interface for a model that only answers, and the ones that live in this process."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from neuralfuse.errors import AnswerError, BusyError, ConfigError, FileFormatError, MissingExtraError
from neuralfuse.plugins import load
from neuralfuse.ranges import InputRange

CALL = "call:"
SENT = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}
"""Types that images can be sent as, by the protocol's names."""
_ONNX = {"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(uint8)": "UINT8"}
_OF_FILE = ("input_name", "output_name", "input_range", "layout")
Layout = Literal["nchw", "nhwc"]


class Box(ABC):
    """A model that answers.

    Attributes:
        name: What it is, for records and for its answers' place in a cache.
    """

    name: str

    @property
    def key(self) -> str:
        """All that its answers depend on but the image: its name, and what of it is asked."""
        return self.name

    @property
    def how(self) -> dict[str, str]:
        """How it is asked, where that is not the usual way; for records."""
        return {}

    @abstractmethod
    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Return one row of output an image.

        Args:
            x: Inputs in the model's own space, (N, C, H, W).

        Raises:
            AnswerError: the model refuses, or answers with something else. Asking again would not help.
            BusyError: it might help to ask again.
        """

    def close(self) -> None:
        """Close what is open."""
        return


class Function(Box):
    """A Python function from float32 (N, C, H, W) to rows.

    It is asked again later when it raises ConnectionError, TimeoutError or `BusyError`.
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
        except Exception as error:  # the code is the user's, and may raise anything
            raise AnswerError(f"{self.name} must answer: it raised {type(error).__name__}: {error}.") from error
        return rows(np.asarray(made), len(x), self.name)


class Named(Box):
    """A model whose input for images and output have names, and that wants images in a type and an order of its own.

    Attributes:
        input_name: Of the images.
        output_name: Of the answers.
        datatype: A key of `SENT`.
        input_range: What the model's inputs are made of.
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
        order = "".join(f" {value}" for value in self.how.values())
        return f"{self.name} {self.input_name} {self.datatype} {self.output_name}{space}{order}"

    @property
    def how(self) -> dict[str, str]:
        """See `Box`."""
        return {} if self.layout == "nchw" else {"layout": self.layout}

    def sent(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Return inputs (N, C, H, W) as the model wants them: UINT8 is the nearest of 256 levels."""
        pixels = self.datatype == "UINT8"
        made = self.input_range.to_bytes(torch.from_numpy(x)).numpy() if pixels else x.astype(SENT[self.datatype])
        return made if self.layout == "nchw" else np.ascontiguousarray(made.transpose(0, 2, 3, 1))


class OnnxFile(Named):
    """A model in an ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        input_name: Of the images, where the model has several inputs.
        output_name: Of the answers, where the model has several outputs.
        input_range: What the model's inputs are made of, for one that takes pixels (uint8).
        layout: Order of the images' axes.
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
        except Exception as error:  # the runtime's own kinds
            reason = str(error).splitlines()[0]
            raise FileFormatError(f"{path} must be an ONNX file that ONNX Runtime takes: {reason}.") from error
        self.name = f"onnx:{digest}"
        self.input_range, self.layout = input_range or InputRange(), layout
        types = {one.name: one.type for one in self.session.get_inputs()}
        self.input_name = _chosen("input", list(types), input_name)
        if types[self.input_name] not in _ONNX:
            legal = ", ".join(_ONNX)
            raise FileFormatError(f"{path} must take {legal}: {self.input_name} is {types[self.input_name]}.")
        self.datatype = _ONNX[types[self.input_name]]
        self.output_name = _chosen("output", [one.name for one in self.session.get_outputs()], output_name)

    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """See `Box`."""
        try:
            (made,) = self.session.run([self.output_name], {self.input_name: self.sent(x)})
        except Exception as error:  # the runtime's own kinds
            raise AnswerError(f"the ONNX model must take {x.shape}: {str(error).splitlines()[0]}.") from error
        return rows(made, len(x), self.name)


def rows(made: NDArray[Any], count: int, name: str) -> NDArray[Any]:
    """Return a model's output if it has one row an image; axes of length 1 behind the second are dropped.

    Raises:
        AnswerError: it has not.
    """
    if made.ndim > 2 and made.size == made.shape[0] * made.shape[1]:
        made = made.reshape(made.shape[:2])
    if made.ndim not in (1, 2) or len(made) != count or made.dtype == object:
        raise AnswerError(
            f"{name} must answer with one row of numbers an image: got {made.dtype} of shape {made.shape} for {count}."
        )
    return made


def _digest(path: Path) -> str:
    """Return a digest of an ONNX file, and of the files beside it that hold its weights."""
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


def _chosen(what: str, names: list[str], wanted: str | None) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        raise FileFormatError(f"--{what}-name must be one of the model's {what}s: {', '.join(names)}. Got {wanted}.")
    return wanted


def is_box(reference: str) -> bool:
    """Say whether a reference names a model that only answers."""
    return reference.startswith(("http://", "https://", CALL)) or reference.endswith(".onnx")


def open_box(reference: str, **options: Any) -> Box:
    """Return the model that a reference names.

    Args:
        reference: ``https://host/v2/models/NAME``, ``FILE.onnx``, or ``call:package.module:function`` (runs your code).
        options: Those of `OnnxFile`, and for a server those of `Served`.

    Raises:
        ConfigError: there is no such function, or it has an option that is not for it.
        FileFormatError: the file is no ONNX model.
        AnswerError: the server knows no such model.
    """
    from neuralfuse.blackbox.served import Served  # noqa: PLC0415

    if reference.startswith(CALL):
        if options.get("layout", "nchw") != "nchw":
            raise ConfigError("--layout must go with a server or an ONNX file: a function gets (N, C, H, W).")
        function = load(reference.removeprefix(CALL), what="function")
        return Function(function, reference)
    if reference.endswith(".onnx"):
        return OnnxFile(Path(reference), **{key: options[key] for key in _OF_FILE if key in options})
    return Served(reference, **options)
