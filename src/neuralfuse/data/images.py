"""Reading image files into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from neuralfuse.data.dataset import Split
from neuralfuse.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def class_folders(folder: Path) -> list[Path]:
    """Return the class folders of ``train`` or ``test``, sorted by name.

    Raises:
        DataError: the folder is missing or holds no class folder.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} must hold class folders: no such folder. Lay images out as train/<class>/* and test/<class>/*."
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} must hold one folder per class: got none.")
    return classes


def image_files(folder: Path) -> list[Path]:
    """Return the image files of one folder, sorted by name.

    Raises:
        DataError: the folder holds no image.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder} must hold images ({', '.join(sorted(SUFFIXES))}): got none.")
    return files


def read_image(path: Path, size: tuple[int, int] | None, *, channels: int = 3) -> np.ndarray:
    """Return an image as uint8 (H, W, C). With a size, crop the largest centred part of its aspect ratio and resize.

    Args:
        path: The image file.
        size: (H, W), or None to keep the image's own.
        channels: 3 for RGB, 1 for luminance.

    Raises:
        DataError: the file is not a readable image. The message names it.
    """
    try:
        with Image.open(path) as file:
            wide = file.mode.startswith(("I", "F"))
            image = file.convert("RGB" if channels == 3 else "L")
    except Exception as error:  # decoders raise almost any exception on damaged files
        raise DataError(f"cannot read image {path}: {error}. Remove or replace it.") from error
    if wide:
        raise DataError(f"images must have 8 bits per channel: {path} has more. Convert it to 8 bits.")
    if size is not None and (image.height, image.width) != size:
        height, width = size
        scale = min(image.height / height, image.width / width)
        crop_width, crop_height = width * scale, height * scale
        left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
        box = (left, top, left + crop_width, top + crop_height)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image).reshape(image.height, image.width, channels)


def read_images(files: Sequence[Path], size: tuple[int, int] | None) -> Tensor:
    """Return images as one uint8 tensor (N, 3, H, W).

    Raises:
        DataError: an image cannot be read, or ``size`` is None and the images differ in size.
    """
    first = read_image(files[0], size)
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    for place, path in enumerate(files):
        image = read_image(path, size)
        if image.shape != first.shape:
            raise DataError(
                f"all images must have the same size: {path} is {image.shape[0]}x{image.shape[1]}, {files[0]} is "
                f"{first.shape[0]}x{first.shape[1]}. Pass --image-size to resize them."
            )
        images[place] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def read_folder(folder: Path, names: Sequence[str] | None, size: tuple[int, int] | None) -> tuple[list[str], Split]:
    """Read ``<class>/*`` below a folder. Return the class names, sorted, and the images labelled in this order.

    Args:
        folder: Folder of class folders.
        names: The class names that must be there, or None for any.
        size: (H, W) to resize to, or None to keep the images' own.

    Raises:
        DataError: a class is missing or unknown, a folder is empty, or an image is broken.
    """
    folders = class_folders(folder)
    found = [path.name for path in folders]
    if names is not None and found != list(names):
        odd = sorted(set(found) ^ set(names))
        raise DataError(f"{folder} must hold the same classes as the training folder: {', '.join(odd)} differ.")
    files, labels = [], []
    for label, path in enumerate(folders):
        own = image_files(path)
        files += own
        labels += [label] * len(own)
    return found, Split(read_images(files, size), torch.tensor(labels))
