"""The workspace of steps: the store, the data sets and the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from neuralfuse.data import DataSet, check_data, load_data
from neuralfuse.steps.scale import ImageSpec
from neuralfuse.steps.store import Store

ANY_DEVICE = "any"  # a GPU if the worker sees one, else the CPU


@dataclass(frozen=True)
class Workspace:
    """The store, the data sets and the device of steps.

    Attributes:
        root: Folder of the store.
        data_dir: Folder of the data sets.
        device: Device to run steps on: a name of torch, or `ANY_DEVICE`.
        download: Whether missing images may be downloaded.
    """

    root: Path
    data_dir: Path | None = None
    device: str = "cpu"
    download: bool = False

    @property
    def store(self) -> Store:
        """The store of finished steps."""
        return Store(self.root)

    def images(self, images: ImageSpec) -> DataSet:
        """Return a data set.

        Raises:
            DataError: the images are missing, or differ from those of the store's earlier steps.
        """
        data = _loaded(self, images)
        self.store.check_same_images(
            "-".join(str(part) for part in (images.name, images.size) if part), data.to_config()
        )
        return data

    def fetch(self, images: ImageSpec) -> None:
        """Download a data set if the workspace allows it. Raise a `DataError` if the data set is missing."""
        if self.download:
            _loaded(self, images)
        else:
            check_data(images.name, self.folder_of(images.name))

    def folder_of(self, name: str) -> Path | None:
        """Return the folder of a data set: its own subfolder if it has class folders, else the common folder."""
        if self.data_dir is None:
            return None
        own = self.data_dir / name
        return own if (own / "train").is_dir() or name == "imagenet10" else self.data_dir


@cache
def _loaded(workspace: Workspace, images: ImageSpec) -> DataSet:
    size = None if images.size is None else (images.size, images.size)
    folder = workspace.folder_of(images.name)
    return load_data(images.name, folder, image_size=size, download=workspace.download, device=workspace.device)
