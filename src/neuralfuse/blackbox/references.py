"""References to black-box models, as a user writes them: a server's address, an ONNX file, a Python function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neuralfuse.blackbox.boxes import Box, Function, OnnxFile
from neuralfuse.blackbox.served import Served
from neuralfuse.errors import ConfigError
from neuralfuse.plugins import load

_CALL = "call:"
_OF_FILE = ("input_name", "output_name", "input_range", "layout")


def is_box(reference: str) -> bool:
    """Say whether a reference names a black-box model."""
    return reference.startswith(("http://", "https://", _CALL)) or reference.endswith(".onnx")


def open_box(reference: str, **options: Any) -> Box:
    """Return the black-box model that a reference names.

    Args:
        reference: ``https://host/v2/models/NAME``, ``FILE.onnx``, or ``call:package.module:function`` (runs your code).
        options: Arguments of `Served`; an ONNX file uses those that `OnnxFile` has, too.

    Raises:
        ConfigError: the function does not exist, or an option does not apply to it.
        FileFormatError: the file is not an ONNX model.
        AnswerError: the server has no such model.
        BusyError: the server cannot be reached, or is not ready.
    """
    if reference.startswith(_CALL):
        if options.get("layout", "nchw") != "nchw":
            raise ConfigError("--layout must go with a server or an ONNX file: a function gets (N, C, H, W).")
        return Function(load(reference.removeprefix(_CALL), what="function"), reference)
    if reference.endswith(".onnx"):
        return OnnxFile(Path(reference), **{key: options[key] for key in _OF_FILE if key in options})
    return Served(reference, **options)
