"""Files: JSON, safetensors and NPZ, written whole or not at all, with one clear error line for a bad file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from neuralfuse.errors import FileFormatError, OutputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary file beside ``path`` and rename that file. A half-written file never appears.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {path}: {error}. Choose another place with --out.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(folder: Path) -> None:
    """Raise `OutputError` if a folder cannot be written. Call this before hours of work."""
    write_atomically(folder / ".writable", lambda path: None)
    (folder / ".writable").unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object atomically. A list of numbers takes one line. NaN is refused because it is not JSON."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_text(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text))


def write_text(path: Path, text: str) -> None:
    """Write a text atomically."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


_NUMBERS = re.compile(r"\[\n((?:\s+(?:-?[\d.]+(?:e[-+]?\d+)?|null),?\n)+)\s*\]")


def read_json(path: Path, schema: str | None = None) -> dict[str, Any]:
    """Read one JSON object. If ``schema`` is given, check the object's ``schema`` key.

    Raises:
        FileFormatError: the file is missing, is not a JSON object, or has another schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise FileFormatError(f"{path} must be JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} must hold one JSON object: got a {type(value).__name__}.")
    if schema is not None and value.get("schema") != schema:
        raise FileFormatError(f"{path} must have schema {schema!r}: got {value.get('schema')!r}.")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically."""
    write_atomically(path, lambda file: save_file(_plain(tensors), file, metadata=dict(metadata or {})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        FileFormatError: the file is missing, truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileFormatError(
            f"{path} must be a whole safetensors file: {error}. It is missing, truncated or of another format."
        ) from error


# Exceptions that NumPy raises on a missing, truncated or damaged file.
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays and a JSON header atomically as a compressed NPZ file. ``path`` should end in ``.npz``."""
    text = json.dumps(header, allow_nan=False)

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, header=np.array(text), **arrays)

    write_atomically(path, write)


def read_arrays(path: Path, schema: str | None, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the header and the named arrays of a file that `write_arrays` wrote. Pickles are never loaded.

    Args:
        path: The NPZ file.
        schema: Schema that the header must have. None accepts any.
        names: Names of the arrays to read.

    Raises:
        FileFormatError: the file is missing, truncated, of another format or of another schema.
    """
    wanted = schema or "neuralfuse/..."
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            header = json.loads(str(file["header"]))
            got = header.get("schema") if isinstance(header, dict) else header
            fits = isinstance(got, str) and (schema is None or got == schema)
            arrays = {name: file[name] for name in names} if fits else {}
    except (*DAMAGED, ValueError, KeyError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(f"{path} must be a whole file of schema {wanted!r}: {reason}.") from error
    if not fits:
        raise FileFormatError(f"{path} must have schema {wanted!r}: got {got!r}.")
    return header, arrays


def write_model(folder: Path, module: nn.Module, config: Mapping[str, Any]) -> None:
    """Write ``model.safetensors``, then ``config.json``. A folder with a config is complete and consistent."""
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / "model.safetensors.new", lambda file: save_file(_plain(module.state_dict()), file))
    (folder / "config.json").unlink(missing_ok=True)
    (folder / "model.safetensors.new").replace(folder / "model.safetensors")
    write_text(folder / "config.json", text)


def fingerprint(*tensors: Tensor) -> str:
    """Return a short digest of tensors' bytes. It shows whether two runs had the same model or data."""
    digest = hashlib.sha256()
    for tensor in (part for one in tensors for part in _parts(one)):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the inner tensors of a quantized tensor. Yield a plain tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def load_weights(module: nn.Module, path: Path, what: str) -> None:
    """Load a weights file into a module of the same architecture.

    Args:
        module: The module to fill.
        path: The safetensors file.
        what: Name of the module, for error messages.

    Raises:
        FileFormatError: names or shapes differ. The message names the first difference.
    """
    tensors, _ = read_tensors(path)
    own = module.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors:
            problem = f"it lacks {name!r}"
        elif name not in own:
            problem = f"it has {name!r}, which {what} lacks"
        elif own[name].shape != tensors[name].shape:
            problem = f"{name!r} has shape {tuple(tensors[name].shape)}, {what} needs {tuple(own[name].shape)}"
        else:
            continue
        raise FileFormatError(f"{path} must hold the weights of {what}: {problem}. It is of another architecture.")
    module.load_state_dict(tensors)
