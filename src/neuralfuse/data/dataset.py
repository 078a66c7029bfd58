"""Data sets: three splits, each a uint8 tensor of images and a tensor of labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from neuralfuse.errors import DataError, ShapeError, require
from neuralfuse.files import fingerprint
from neuralfuse.seeds import generator


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: (N, C, H, W): uint8 pixels, or float32 in the model's own input space.
        labels: int64 (N,).
        groups: int64 (N,) or None. Images of one group, e.g. frames of one film, must stay in one split.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise ShapeError(
                "images must be uint8 pixels or float32 model inputs (N, C, H, W): got "
                f"{self.images.dtype} {tuple(self.images.shape)}."
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ShapeError(
                f"there must be one label per image: got {tuple(self.labels.shape)} for {len(self.images)} images."
            )
        if len(self.images) == 0:
            raise DataError("a split must hold at least one image: got none.")
        if self.labels.dtype != torch.int64:
            raise DataError(f"labels must be int64: got {self.labels.dtype}.")
        if self.images.is_floating_point() and not bool(self.images.isfinite().all()):
            raise DataError("float images must be finite: got infinity or NaN.")

    @staticmethod
    def of(source: SplitLike) -> Split:
        """Return images and labels from any supported source as a split.

        Args:
            source: A split, a pair (images, labels) of tensors, or a DataLoader that yields such pairs. A DataLoader
                is read once, in its order. Images are uint8 pixels, or floats in the model's own input space.
        Raises:
            DataError: the source has another type, or yields something else than such pairs.
        """
        if isinstance(source, Split):
            return source
        if isinstance(source, DataLoader):
            with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator
                pairs = [_pair(batch, "a DataLoader must yield") for batch in source]
            if not pairs:
                raise DataError("a DataLoader must yield at least one batch: got none.")
        else:
            pairs = [_pair(source, "images must be a Split, a DataLoader, or")]
        kinds = {(images.dtype, images.shape[1:]) for images, _ in pairs}
        if len(kinds) > 1:
            raise DataError(f"all batches of a DataLoader must have images of one type and size: got {len(kinds)}.")
        images, labels = zip(*pairs, strict=True)
        return Split(torch.cat(images), torch.cat(labels))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({self.images.dtype} {tuple(self.images.shape)})"

    def __getitem__(self, rows: Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows], None if self.groups is None else self.groups[rows])

    def order(self, *path: str | int) -> Tensor:
        """Return a permutation of the rows that depends on the names in ``path`` alone: int64 (N,)."""
        return torch.randperm(len(self), generator=generator(*path)).to(self.images.device)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        groups = None if self.groups is None else self.groups.to(device)
        return Split(self.images.to(device), self.labels.to(device), groups)


SplitLike = Split | tuple[Tensor, Tensor] | DataLoader[Any]


def _pair(batch: object, wanted: str) -> tuple[Tensor, Tensor]:
    """Return a pair of images (uint8 or float32) and labels (int64). Raise a `DataError` for anything else."""
    pair = tuple(batch) if isinstance(batch, list | tuple) else ()
    if len(pair) == 2 and all(isinstance(one, Tensor) for one in pair):
        images, labels = pair
        whole = not (labels.is_floating_point() or labels.is_complex()) and labels.dtype != torch.bool
        if images.dim() == 4 and labels.shape == images.shape[:1] and whole:
            if images.dtype == torch.uint8:
                return images, labels.long()
            if images.is_floating_point():
                return images.float(), labels.long()
    raise DataError(
        f"{wanted} pairs (images, labels) of tensors, uint8 or float (N, C, H, W) and whole numbers (N,): got "
        f"{_described(batch)}."
    )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {value.dtype} {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        if len(value) > 3:
            return f"a {type(value).__name__} of {len(value)}"
        return f"({', '.join(_described(one) for one in value)})"
    return f"a {type(value).__name__}"


@dataclass(frozen=True)
class DataSet:
    """A data set in three splits, for training, validation and test.

    Each split may be given in any form that `Split.of` accepts.

    Attributes:
        name: ``digits``, ``gtsrb``, ...
        classes: Class names, in the order of the labels.
        train: Training images.
        validation: Images held out of the training set, for early stopping.
        test: Test images, scored once.
        files: Suffixes of image files that are copies of the original data, e.g. ``.jpg``. Empty for the original.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            split = Split.of(getattr(self, part))
            object.__setattr__(self, part, split)
            low, high, count = int(split.labels.min()), int(split.labels.max()), len(self.classes)
            if low < 0 or high >= count:
                raise DataError(f"labels must be in 0..{count - 1}, for {count} classes: got {low}..{high} in {part}.")
        kinds = {(one.images.dtype, one.images.shape[1:]) for one in (self.train, self.validation, self.test)}
        if len(kinds) > 1:
            raise DataError(f"all parts of a data set must have images of one type and size: got {len(kinds)}.")

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.test.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.test.images.shape[2], self.test.images.shape[3]

    def to_config(self) -> dict[str, Any]:
        """Return the properties that a result depends on, as JSON."""
        return {
            "name": self.name,
            "image_size": list(self.image_size),
            "train_images": len(self.train),
            "validation_images": len(self.validation),
            "test_images": len(self.test),
            "train_fingerprint": fingerprint(self.train.images, self.train.labels),
            "test_fingerprint": fingerprint(self.test.images, self.test.labels),
            **({"files": list(self.files)} if self.files else {}),
        }

    def to(self, device: torch.device | str) -> DataSet:
        """Return the data set on a device."""
        moved = {part: getattr(self, part).to(device) for part in ("train", "validation", "test")}
        return replace(self, **moved)


def holdout(split: Split, share: float, *path: str | int) -> tuple[Split, Split]:
    """Divide a split into (kept, held out). ``share`` of each class's groups is held out, at least one group.

    Args:
        split: The split to divide. Without groups, each image is its own group.
        share: Fraction to hold out, in (0, 1).
        path: Names that seed the choice. The same names always give the same result.
    Raises:
        DataError: a class has a single group, so none would be kept.
    """
    require(0 < share < 1, f"the validation share must be in (0, 1): got {share}.")
    groups = torch.arange(len(split)) if split.groups is None else split.groups.cpu()
    labels = split.labels.cpu()
    draw = generator(*path, "holdout")
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in torch.unique(labels):
        own = torch.unique(groups[labels == label])
        if len(own) < 2:
            raise DataError(f"each class must have at least 2 training images or groups: class {int(label)} has 1.")
        count = max(1, round(share * len(own)))
        chosen = own[torch.randperm(len(own), generator=draw)[:count]]
        held |= torch.isin(groups, chosen)
    rows = torch.arange(len(split))
    return split[rows[~held]], split[rows[held]]
