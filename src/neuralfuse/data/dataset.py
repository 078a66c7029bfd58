"""What a data set is: three splits, each one uint8 tensor of images and one of labels."""

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
    """Images and labels that belong together.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        groups: int64 (N,) or None: images of one group (frames of one film, say) must not be torn apart.
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
        """Return all rows in an order that the names alone decide, the same for ever: int64 (N,)."""
        return torch.randperm(len(self), generator=generator(*path)).to(self.images.device)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        groups = None if self.groups is None else self.groups.to(device)
        return Split(self.images.to(device), self.labels.to(device), groups)


@dataclass(frozen=True)
class DataSet:
    """A data set split for honest work: train on one part, choose by the second, report on the third.

    Attributes:
        name: ``digits``, ``gtsrb``, ...
        classes: Names of the classes, by label.
        train: For training.
        validation: Split off the training set; for early stopping.
        test: Scored once.
        files: Kinds of image files that stand in for the original, e.g. ``.jpg``; none where it is the original.
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
        """Return what a result depends on of this data set, as JSON."""
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
    """Split into (kept, held out): ``share`` of each class's groups, at least one, chosen by a seed path.

    Args:
        split: What to split; images without groups are groups of their own.
        share: Fraction to hold out, in (0, 1).
        path: Names that seed the choice; the same names give the same split for ever.
    Raises:
        DataError: a class has a single group, so nothing would be left.
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
