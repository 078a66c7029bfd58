"""Data sets as whole tensors on the device, and augmentation in batches."""

from neuralfuse.data.augment import AUGMENT, Augment, augmentation
from neuralfuse.data.dataset import DataSet, Split, SplitLike, holdout
from neuralfuse.data.sources import DATA_SETS, check_data, load_data

__all__ = [
    "AUGMENT",
    "DATA_SETS",
    "Augment",
    "DataSet",
    "Split",
    "SplitLike",
    "augmentation",
    "check_data",
    "holdout",
    "load_data",
]
