"""F(x) for a folder of image files or an array on disk, in batches, resumable after an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuralfuse.data.images import SUFFIXES, read_image
from neuralfuse.errors import DataError, NeuralFuseError, OutputError, require
from neuralfuse.files import fingerprint, read_json, write_atomically, write_json
from neuralfuse.fuse import NeuralFuse

Layout = Literal["nchw", "nhwc"]
Progress = Callable[[int, int], None]
BATCH = 64  # a resumed run repeats whole batches, so that its output has the same bytes
FOLDER_SCHEMA, ARRAY_SCHEMA = "neuralfuse/applied-folder/1", "neuralfuse/applied-array/1"
MANIFEST = "neuralfuse.json"
_TOLERANCE = 1e-3  # for float inputs, beyond [-1, 1]


def transform_bytes(fuse: NeuralFuse, images: Tensor) -> Tensor:
    """Return F(x) of uint8 images (N, C, H, W) as uint8 images, rounded to the nearest of 256 levels."""
    device = fuse.scale.device
    with torch.inference_mode():
        return fuse.input_range.to_bytes(fuse(fuse.input_range.from_bytes(images.to(device)))).cpu()


def check_inputs(fuse: NeuralFuse, x: Tensor) -> None:
    """Raise a `DataError` unless float inputs (N, C, H, W) lie in the range of pixels in the model's own space."""
    with torch.inference_mode():
        most = float(fuse.symmetric(x.to(fuse.scale.device)).abs().max())
    if not most <= 1 + _TOLERANCE:
        raise DataError(
            f"values must be model inputs, (pixel - {fuse.input_range.mean}) / {fuse.input_range.std} for pixels in "
            f"[0, 1]: got {float(x.min()):g} to {float(x.max()):g}. Pixels in 0..255 must be stored as uint8."
        )


def transform_floats(fuse: NeuralFuse, inputs: Tensor) -> Tensor:
    """Return F(x) of float32 inputs (N, C, H, W) in the model's own space."""
    with torch.inference_mode():
        made: Tensor = fuse(inputs.to(fuse.scale.device)).cpu()
    return made


def transform_any(fuse: NeuralFuse, images: Tensor) -> Tensor:
    """Return F(x) of uint8 images or float32 inputs, in the same type."""
    return (transform_bytes if images.dtype == torch.uint8 else transform_floats)(fuse, images)


def apply_folder(
    fuse: NeuralFuse,
    source: Path,
    target: Path,
    *,
    resize: bool = False,
    resume: bool = False,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write F(x) of every image below a folder as PNG, with the same name in the same subfolder.

    Args:
        fuse: In eval mode.
        source: Folder of images, searched with its subfolders.
        target: Folder to write: new, empty, or from an earlier run with the same arguments.
        resize: Crop and resize images of another size, as in training on a folder of images.
        resume: Keep the images that an interrupted run wrote.
        progress: Called after every batch with the number of images done, and their total.

    Returns:
        The number of images.

    Raises:
        DataError: there is no image, one cannot be read or has another size, or two would get the same name.
        OutputError: the target holds other files, or cannot be written.
    """
    files = _files(source, target)
    manifest = {"schema": FOLDER_SCHEMA, "fuse": _identity(fuse), "source": _digest(files.values()), "resized": resize}
    _write_manifest(target, manifest)
    places = list(files.items())
    for start in range(0, len(places), BATCH):
        batch = places[start : start + BATCH]
        if not (resume and all(path.exists() for path, _ in batch)):
            made = transform_bytes(fuse, torch.stack([_read(file, fuse, resize) for _, file in batch]))
            for (path, _), image in zip(batch, made, strict=True):
                write_atomically(path, _picture(image).save)
        progress(start + len(batch), len(places))
    return len(places)


def _files(source: Path, target: Path) -> dict[Path, Path]:
    """Return the source file of each picture to write."""
    if not source.is_dir():
        raise DataError(f"images must lie in a folder or an NPY file: {source} is neither.")
    inside = target.resolve().is_relative_to(source.resolve())
    require(not inside, f"the target folder must not lie in the source folder: got {target} in {source}.")
    found: dict[Path, Path] = {}
    for file in sorted(source.rglob("*")):
        below = file.relative_to(source)
        if file.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in below.parts):
            continue
        path = (target / below).with_suffix(".png")
        if path in found:
            raise DataError(f"{found[path]} and {file} must not both become {path}. Rename one.")
        found[path] = file
    if not found:
        raise DataError(f"{source} must hold images ({', '.join(sorted(SUFFIXES))}): got none.")
    return found


def _identity(fuse: NeuralFuse) -> dict[str, Any]:
    return {"generator": fuse.name, "weights": fingerprint(*fuse.state_dict().values())}


def _digest(files: Iterable[Path]) -> str:
    """Return a digest of the files' names, sizes and modification times."""
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file.absolute()}\n{facts.st_size}\n{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _write_manifest(target: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of this run into the target folder; refuse a folder of another run."""
    path = target / MANIFEST
    others = target.is_dir() and any(file != path for file in target.iterdir())
    if others and path.exists():
        if read_json(path) != manifest:
            raise OutputError(
                f"{target} must be new, empty or from the same NeuralFuse and images: {path} describes another run. "
                "Choose another folder, or remove it."
            )
    elif others:
        raise OutputError(f"{target} must be new, empty or from the same command: it holds other files.")
    write_json(path, manifest)


def _read(file: Path, fuse: NeuralFuse, resize: bool) -> Tensor:
    image = read_image(file, fuse.image_size if resize else None, channels=fuse.channels)
    if image.shape[:2] != fuse.image_size:
        height, width = fuse.image_size
        raise DataError(
            f"images must be {height}x{width}, as in the NeuralFuse's training: {file} is "
            f"{image.shape[0]}x{image.shape[1]}. Pass --resize to resize them."
        )
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def _picture(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


@dataclass(frozen=True)
class _Array:
    """An array on disk, (N, C, H, W) or (N, H, W, C) of uint8 pixels or float32 model inputs."""

    path: Path
    layout: Layout
    fuse: NeuralFuse

    @cached_property
    def values(self) -> np.ndarray[Any, Any]:
        """The array, checked and memory-mapped."""
        try:
            values = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"cannot read {self.path}: {str(error).splitlines()[0]}.") from error
        if not isinstance(values, np.ndarray):
            raise DataError(f"{self.path} must hold one array, as numpy.save writes it: got an archive.")
        if values.dtype not in (np.uint8, np.float32):
            raise DataError(f"{self.path} must be uint8 (pixels) or float32 (model inputs): got {values.dtype}.")
        height, width = self.fuse.image_size
        wanted = (self.fuse.channels, height, width) if self.layout == "nchw" else (height, width, self.fuse.channels)
        if values.ndim != 4 or values.shape[1:] != wanted or len(values) == 0:
            sizes = ", ".join(map(str, wanted))
            raise DataError(
                f"{self.path} must have shape (N, {sizes}) with --layout {self.layout}: got {values.shape}."
            )
        return values

    def batches(self, first: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Yield the start of each batch and its F(x)."""
        for start in range(first, len(self.values), BATCH):
            part = torch.from_numpy(np.array(self.values[start : start + BATCH]))
            x = part if self.layout == "nchw" else part.permute(0, 3, 1, 2)
            if x.dtype != torch.uint8:
                check_inputs(self.fuse, x)
            made = transform_any(self.fuse, x)
            yield start, (made if self.layout == "nchw" else made.permute(0, 2, 3, 1)).numpy()

    @property
    def digest(self) -> str:
        """Digest of the file."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def apply_array(
    fuse: NeuralFuse,
    source: Path,
    target: Path,
    *,
    layout: Layout = "nchw",
    resume: bool = False,
    progress: Progress = lambda done, total: None,
) -> int:
    """Write F(x) of an NPY file as another one of the same shape and type; neither needs to fit into memory.

    Args:
        fuse: In eval mode.
        source: uint8 pixels, or float32 inputs in the model's own space.
        target: NPY file to write. Until it is complete, it is ``.NAME.partial`` with ``.NAME.json`` beside it.
        layout: Order of the array's axes.
        resume: Resume from the batches that an interrupted run wrote.
        progress: Called after every batch with the number of images done, and their total.

    Returns:
        The number of images.

    Raises:
        DataError: the module cannot take the array.
        OutputError: the target cannot be written, or the partial file is damaged.
    """
    array = _Array(source, layout, fuse)
    values = array.values
    require(source.resolve() != target.resolve(), f"the array must be written to another file: got {target} for both.")
    partial, note = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.json")
    task = {"schema": ARRAY_SCHEMA, "fuse": _identity(fuse), "source": array.digest, "layout": layout}
    done = _images_done(note, task) if resume and partial.exists() else 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if done:
            found = np.lib.format.open_memmap(partial, "r")  # unlike r+, it does not extend a truncated file
            same = (found.shape, found.dtype) == (values.shape, values.dtype)
            require(same, f"--resume must find a file of {values.dtype} {values.shape}: {partial} differs.")
            out = np.lib.format.open_memmap(partial, "r+")
        else:
            note.unlink(missing_ok=True)  # the file starts anew
            out = np.lib.format.open_memmap(partial, "w+", dtype=values.dtype, shape=values.shape)
        for start, made in array.batches(done):
            out[start : start + len(made)] = made
            out.flush()
            write_json(note, {**task, "done": start + len(made)})
            progress(start + len(made), len(values))
        del out
        partial.replace(target)
        note.unlink(missing_ok=True)
    except NeuralFuseError:
        raise
    except ValueError as error:  # NumPy raises it for a damaged file
        raise OutputError(f"cannot resume from {partial}: {error}. Remove it, or leave out --resume.") from error
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}. Choose another place.") from error
    return len(values)


def _images_done(note: Path, task: Mapping[str, Any]) -> int:
    """Return how many images an interrupted run of the same task has written."""
    if not note.exists():
        return 0
    found = read_json(note, ARRAY_SCHEMA)
    done = found.pop("done", None)
    require(
        found == task and type(done) is int,
        f"--resume must come with the same NeuralFuse, array and options: {note} has {found}.",
    )
    return int(done)
