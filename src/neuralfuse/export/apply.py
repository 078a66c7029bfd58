"""F(x) for a folder of image files or an array on disk, in batches: what was written before an interruption is kept."""

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
BATCH = 64  # an interrupted run does whole batches again, so that it ends with the same bytes
FOLDER_SCHEMA, ARRAY_SCHEMA = "neuralfuse/applied-folder/1", "neuralfuse/applied-array/1"
MANIFEST = "neuralfuse.json"
_TOLERANCE = 1e-3  # beyond [-1, 1]


def transform_bytes(fuse: NeuralFuse, images: Tensor) -> Tensor:
    """Return F(x) of uint8 images (N, C, H, W) as uint8 images: rounded to the nearest of 256 levels."""
    device = fuse.scale.device
    with torch.inference_mode():
        return fuse.input_range.to_bytes(fuse(fuse.input_range.from_bytes(images.to(device)))).cpu()


def check_inputs(fuse: NeuralFuse, x: Tensor) -> None:
    """Raise a `DataError` unless float inputs (N, C, H, W) are what a pixel can become in the model's own space."""
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
    """Return F(x) of uint8 images or float32 inputs as what they are."""
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
    """Write F(x) of every image below a folder as PNG, under the same name in the same subfolder.

    Args:
        fuse: In eval mode.
        source: Folder of images.
        target: Folder for theirs: a new or empty one, or that of an earlier run of the same on the same files.
        resize: Cut and resize images of another size, as training on a folder of images does.
        resume: Keep what an interrupted run wrote.
        progress: Told after every batch.

    Returns:
        The number of images.

    Raises:
        DataError: there is no image, one cannot be read or has another size, or two would get one name.
        OutputError: the target holds something else, or cannot be written.
    """
    files = _files(source, target)
    manifest = {"schema": FOLDER_SCHEMA, "fuse": _identity(fuse), "source": _state(files.values()), "resized": resize}
    _claim(target, manifest)
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
    """Return the file that each picture to write is made from."""
    if not source.is_dir():
        raise DataError(f"images must lie in a folder or an NPY file: {source} is neither.")
    inside = target.resolve().is_relative_to(source.resolve())
    require(not inside, f"the folder to write must not be in the one that is read: got {target} in {source}.")
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


def _state(files: Iterable[Path]) -> str:
    """Return a digest of files' names, sizes and times, to tell whether they are still the same."""
    digest = hashlib.sha256()
    for file in files:
        facts = file.stat()
        digest.update(f"{file.absolute()}\n{facts.st_size}\n{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _claim(target: Path, manifest: dict[str, Any]) -> None:
    """Say in the target folder what is written there; refuse one that holds something else."""
    path = target / MANIFEST
    others = target.is_dir() and any(file != path for file in target.iterdir())
    if others and path.exists():
        if read_json(path) != manifest:
            raise OutputError(
                f"{target} must hold what the same NeuralFuse makes of the same images: {path} says that it holds "
                "something else. Choose another folder, or remove it."
            )
    elif others:
        raise OutputError(f"{target} must be empty, or written by the same command: it holds other files.")
    write_json(path, manifest)


def _read(file: Path, fuse: NeuralFuse, resize: bool) -> Tensor:
    image = read_image(file, fuse.image_size if resize else None, channels=fuse.channels)
    if image.shape[:2] != fuse.image_size:
        height, width = fuse.image_size
        raise DataError(
            f"images must be {height}x{width}, those that the NeuralFuse was trained on: {file} is "
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
        """The array, checked and not in memory."""
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
        """Yield where each batch starts, and F(x) of it."""
        for start in range(first, len(self.values), BATCH):
            part = torch.from_numpy(np.array(self.values[start : start + BATCH]))
            x = part if self.layout == "nchw" else part.permute(0, 3, 1, 2)
            if x.dtype != torch.uint8:
                check_inputs(self.fuse, x)
            made = transform_any(self.fuse, x)
            yield start, (made if self.layout == "nchw" else made.permute(0, 2, 3, 1)).numpy()

    @property
    def digest(self) -> str:
        """Of the file."""
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
    """Write F(x) of an NPY file as another, of the same shape and type; neither has to fit into memory.

    Args:
        fuse: In eval mode.
        source: uint8 pixels, or float32 inputs in the model's own space.
        target: NPY file to write. Until it is whole it is called ``.NAME.partial``, with ``.NAME.json`` beside it.
        layout: Order of the array's axes.
        resume: Go on from what an interrupted run wrote.
        progress: Told after every batch.

    Returns:
        The number of images.

    Raises:
        DataError: the array is none that the module can take.
        OutputError: the target cannot be written.
    """
    array = _Array(source, layout, fuse)
    values = array.values
    require(source.resolve() != target.resolve(), f"the array must be written to another file: got {target} for both.")
    partial, note = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.json")
    of = {"schema": ARRAY_SCHEMA, "fuse": _identity(fuse), "source": array.digest, "layout": layout}
    done = _done(note, of) if resume and partial.exists() else 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if done:
            found = np.lib.format.open_memmap(partial, "r")  # which, unlike r+, does not make a short file longer
            same = (found.shape, found.dtype) == (values.shape, values.dtype)
            require(same, f"--resume must find a file of {values.dtype} {values.shape}: {partial} is another.")
            out = np.lib.format.open_memmap(partial, "r+")
        else:
            note.unlink(missing_ok=True)  # of an earlier run, whose file is begun anew
            out = np.lib.format.open_memmap(partial, "w+", dtype=values.dtype, shape=values.shape)
        for start, made in array.batches(done):
            out[start : start + len(made)] = made
            out.flush()
            write_json(note, {**of, "done": start + len(made)})
            progress(start + len(made), len(values))
        del out
        partial.replace(target)
        note.unlink(missing_ok=True)
    except NeuralFuseError:
        raise
    except ValueError as error:  # what NumPy says of a damaged file
        raise OutputError(f"cannot go on with {partial}: {error}. Remove it, or leave out --resume.") from error
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}. Choose another place.") from error
    return len(values)


def _done(note: Path, of: Mapping[str, Any]) -> int:
    """Return how many images an interrupted run of the same has written."""
    if not note.exists():
        return 0
    found = read_json(note, ARRAY_SCHEMA)
    done = found.pop("done", None)
    require(
        found == of and type(done) is int,
        f"--resume must go on with the same NeuralFuse, array and options: {note} says {found}.",
    )
    return int(done)
