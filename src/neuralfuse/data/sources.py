"""The data sets by name. The digits come with the package. CIFAR and GTSRB need torchvision."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from neuralfuse.data.dataset import DataSet, Split, holdout
from neuralfuse.data.images import class_folders, image_files, read_folder, read_images
from neuralfuse.errors import DataError, MissingExtraError, require, unknown_name

Size = tuple[int, int] | None
_Raw = tuple[list[str], Split, Split]  # class names, training split, test split

VALIDATION_SHARE = 0.1


def _digits(folder: Path | None, size: Size, download: bool) -> _Raw:
    with resources.files("neuralfuse.data").joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        images = torch.from_numpy(archive["images"])[:, None]
        labels = torch.from_numpy(archive["labels"]).long()
    images = (images.float() * (255 / 16)).round()
    if size is not None:
        images = F.interpolate(images, size, mode="bilinear", align_corners=False).round()
    kept, test = holdout(Split(images.byte(), labels), 0.3, "digits", "test")
    return [str(digit) for digit in range(10)], kept, test


def _cifar(name: str) -> Callable[[Path | None, Size, bool], _Raw]:
    def load(folder: Path | None, size: Size, download: bool) -> _Raw:
        root = _need_folder(name, folder)
        if _has_class_folders(root):
            return _folder(root, size or (32, 32), download)
        parts = _published(name, root, download)
        splits = [
            Split(
                _resized(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), size), torch.tensor(part.targets)
            )
            for part in parts
        ]
        return list(parts[0].classes), splits[0], splits[1]

    return load


def _gtsrb(folder: Path | None, size: Size, download: bool) -> _Raw:
    """Load the German traffic signs. Training images of one track are frames of one film, so each track is a group."""
    root = _need_folder("gtsrb", folder)
    _published("gtsrb", root, download)
    base = root / "gtsrb"
    folders = class_folders(base / "GTSRB" / "Training")
    files, labels, groups = [], [], []
    table = base / "GT-final_test.csv"
    try:
        for label, own in enumerate(folders):
            require(int(own.name) == label, f"{own} must be class folder {label:05d}, as numbers must have no gap")
            for path in image_files(own):
                files.append(path)
                labels.append(label)
                groups.append(label * 10_000 + int(path.name.split("_")[0]))
        rows = [line.split(";") for line in table.read_text().splitlines()[1:] if line]
        test_labels = torch.tensor([int(row[-1]) for row in rows])
    except ValueError as error:
        raise DataError(f"GTSRB in {base} must have its published layout: {error}.") from error
    wanted = size or (32, 32)
    train = Split(read_images(files, wanted), torch.tensor(labels), torch.tensor(groups))
    test_files = [base / "GTSRB" / "Final_Test" / "Images" / row[0] for row in rows]
    return [path.name for path in folders], train, Split(read_images(test_files, wanted), test_labels)


def _published(name: str, root: Path, download: bool) -> list[Any]:
    """Return torchvision's training and test part of a data set, downloaded into ``root`` if ``download``."""
    datasets = _torchvision()
    try:
        if name == "gtsrb":
            return [datasets.GTSRB(root, split=split, download=download) for split in ("train", "test")]
        return [getattr(datasets, name.upper())(root, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise _missing(name, root, download, error) from error


def _folder(folder: Path | None, size: Size, download: bool) -> _Raw:
    root = _need_folder("folder", folder)
    names, train = read_folder(root / "train", None, size)
    _, test = read_folder(root / "test", names, size)
    return names, train, test


def _imagenet10(folder: Path | None, size: Size, download: bool) -> _Raw:
    return _folder(_need_folder("imagenet10", folder), size or (224, 224), download)


def _has_class_folders(root: Path) -> bool:
    return (root / "train").is_dir() and (root / "test").is_dir()


DATA_SETS: dict[str, Callable[[Path | None, Size, bool], _Raw]] = {
    "digits": _digits,
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
    "gtsrb": _gtsrb,
    "imagenet10": _imagenet10,
    "folder": _folder,
}


def load_data(
    name: str,
    data_dir: Path | str | None = None,
    *,
    image_size: Size = None,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> DataSet:
    """Load a data set. Its validation split is always the same part of the training images.

    Args:
        name: ``digits`` comes with the package. ``cifar10``, ``cifar100`` and ``gtsrb`` need torchvision.
            ``imagenet10`` and ``folder`` are class folders, ``train/<class>/*`` and ``test/<class>/*``. CIFAR may be
            class folders too.
        data_dir: Folder of the data set.
        image_size: (H, W) to resize to. None for the set's own size (GTSRB and CIFAR: 32x32, ImageNet-10: 224x224).
        download: Whether torchvision may download the data set into ``data_dir``.
        device: Device of the tensors.
    Raises:
        UnknownNameError: there is no such data set.
        DataError: the data set is missing, empty, or has a damaged image.
        MissingExtraError: torchvision is needed but not installed.
    """
    if name not in DATA_SETS:
        raise unknown_name("data set", name, DATA_SETS)
    require(image_size is None or min(image_size) >= 1, f"image_size must be positive: got {image_size}.")
    classes, train, test = DATA_SETS[name](None if data_dir is None else Path(data_dir), image_size, download)
    require(
        train.images.shape[1:] == test.images.shape[1:],
        f"training and test images must have the same size: got {tuple(train.images.shape[2:])} and "
        f"{tuple(test.images.shape[2:])}. Pass --image-size to resize them.",
    )
    kept, validation = holdout(train, VALIDATION_SHARE, name, "validation")
    files = _suffixes(Path(data_dir)) if name in _FROM_FOLDERS and data_dir is not None else ()
    return DataSet(name, tuple(classes), kept, validation, test, files).to(device)


_FROM_FOLDERS = ("cifar10", "cifar100")  # whose class folders hold copies of the original data


def _suffixes(root: Path) -> tuple[str, ...]:
    """Return the suffixes of the training images in class folders. Empty without class folders."""
    if not _has_class_folders(root):
        return ()
    return tuple(sorted({path.suffix.lower() for one in class_folders(root / "train") for path in image_files(one)}))


def check_data(name: str, data_dir: Path | str | None) -> None:
    """Raise the error of `load_data` if a data set is missing. No images are kept."""
    if name not in DATA_SETS:
        raise unknown_name("data set", name, DATA_SETS)
    if name == "digits":
        return
    root = _need_folder(name, None if data_dir is None else Path(data_dir))
    if name in ("folder", "imagenet10"):
        for part in ("train", "test"):
            class_folders(root / part)
    elif name == "gtsrb" or not _has_class_folders(root):
        _published(name, root, download=False)


def _torchvision() -> Any:
    try:
        from torchvision import datasets  # noqa: PLC0415
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError(
            "this data set needs torchvision in a build that matches torch: run pip install 'neuralfuse[vision]'. "
            "--data digits and --data folder work without it."
        ) from error
    return datasets


def _need_folder(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise DataError(f"--data {name} needs --data-dir: got none. Pass the folder of the data set.")
    return folder


def _missing(name: str, root: Path, download: bool, error: Exception) -> DataError:
    if download:
        return DataError(f"--data {name} could not be downloaded into {root}: {error}.")
    return DataError(f"--data {name} must be in {root}: not found there. Pass --download to download it.")


def _resized(images: torch.Tensor, size: Size) -> torch.Tensor:
    if size is None or tuple(images.shape[2:]) == size:
        return images
    parts = [
        F.interpolate(part.float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in torch.split(images, 1000)
    ]
    return torch.cat(parts)
