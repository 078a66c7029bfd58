"""One small interface for a model that only answers, and the ones that live in this process."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralfuse.errors import AnswerError, BusyError, FileFormatError, MissingExtraError
from neuralfuse.plugins import load

CALL = "call:"


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


class OnnxFile(Box):
    """A model in an ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: The file.
        input_name: Of the images, where the model has several inputs.
        output_name: Of the answers, where the model has several outputs.
    """

    def __init__(self, path: Path, *, input_name: str | None = None, output_name: str | None = None) -> None:
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
        self.input_name = _chosen("input", [one.name for one in self.session.get_inputs()], input_name)
        self.output_name = _chosen("output", [one.name for one in self.session.get_outputs()], output_name)

    @property
    def key(self) -> str:
        """See `Box`."""
        return f"{self.name} {self.input_name} {self.output_name}"

    def ask(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """See `Box`."""
        try:
            (made,) = self.session.run([self.output_name], {self.input_name: x})
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
        options: ``input_name`` and ``output_name``, and for a server those of `Served`.

    Raises:
        ConfigError: there is no such function.
        FileFormatError: the file is no ONNX model.
        AnswerError: the server knows no such model.
    """
    from neuralfuse.blackbox.served import Served  # noqa: PLC0415

    if reference.startswith(CALL):
        function = load(reference.removeprefix(CALL), what="function")
        return Function(function, reference)
    names = {key: options[key] for key in ("input_name", "output_name") if key in options}
    return OnnxFile(Path(reference), **names) if reference.endswith(".onnx") else Served(reference, **options)
