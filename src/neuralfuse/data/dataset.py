"""Data sets: three splits, each a uint8 tensor of images and a tensor of labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neuralfuse.errors import DataError, ShapeError, require
from neuralfuse.files import fingerprint
from neuralfuse.seeds import generator


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        groups: int64 (N,) or None. Images of one group, e.g. frames of one film, must stay in one split.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8:
            raise ShapeError(f"images must be uint8 (N, C, H, W): got {self.images.dtype} {tuple(self.images.shape)}.")
        if self.labels.shape != self.images.shape[:1]:
            raise ShapeError(
                f"there must be one label an image: got {tuple(self.labels.shape)} for {len(self.images)} images."
            )
        if len(self.images) == 0:
            raise DataError("a split must hold at least one image: got none.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> Split:
        return Split(self.images[rows], self.labels[rows], None if self.groups is None else self.groups[rows])

    def order(self, *path: str | int) -> Tensor:
        """Return a permutation of the rows that depends on the names in ``path`` alone: int64 (N,)."""
        return torch.randperm(len(self), generator=generator(*path)).to(self.images.device)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        groups = None if self.groups is None else self.groups.to(device)
        return Split(self.images.to(device), self.labels.to(device), groups)


@dataclass(frozen=True)
class DataSet:
    """A data set in three splits: one to train on, one to choose by, one to report on.

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
