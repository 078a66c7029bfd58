"""Protection by a NeuralFuse before the model: trained for this model, or loaded from a folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from neuralfuse.config import EopmConfig
from neuralfuse.errors import require
from neuralfuse.fuse import NeuralFuse, check_same_range
from neuralfuse.methods.base import Access, Method, Preparation, Protected, TrainingContext, Workload
from neuralfuse.nets import check_generator, code_of, encodes_images
from neuralfuse.pipeline import make_fuse


@dataclass(frozen=True)
class Fused(Method):
    """A NeuralFuse, trained against the faults of the model that the previous methods left.

    Attributes:
        generator: A key of `GENERATORS`, a plugin's name, or ``package.module:factory`` (runs that code).
    """

    name: ClassVar[str] = "neuralfuse"
    needs: ClassVar[tuple[Access, ...]] = ("inputs", "gradients")
    transforms_inputs: ClassVar[bool] = True
    generator: str = "convl"

    def __post_init__(self) -> None:
        check_generator(self.generator)

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        _check_place(protected)
        folder, faults, data = context.folder, protected.faults_left(context.faults), context.data
        if not (folder / "config.json").exists():
            encodes = encodes_images(self.generator, data.channels, data.image_size)
            eopm = self.neuralfuse_training(context.eopm, encodes=encodes)
            make_fuse(
                self.generator, [protected.base], data, eopm, faults=faults,
                start=context.starts.get(self.generator), out=folder, resume=True,
                listeners=context.listeners, device=context.device,
            )  # fmt: skip
        fuse = NeuralFuse.from_pretrained(folder, allow_code=self.generator)  # the user named this code
        return replace(protected, fuse=fuse.to(context.device))

    def neuralfuse_training(self, eopm: EopmConfig, *, encodes: bool) -> EopmConfig:
        """See `Method`: a generator that does not encode the image learns no classes."""
        return eopm if encodes else replace(eopm, class_head=0.0)

    def training_macs(self, work: Workload) -> float:
        """See `Method`."""
        return work.eopm.macs(work.train_images, work.base, work.generator)

    def to_config(self) -> dict[str, Any]:
        """Return the generator, with a digest of its code if it is the user's own."""
        return {**super().to_config(), **code_of(self.generator)}

    @property
    def label(self) -> str:
        """The generator's name."""
        return self.generator


@dataclass(frozen=True)
class Given(Method):
    """A NeuralFuse that is already trained, for this model or for a similar one.

    Attributes:
        folder: Folder written by `neuralfuse train`.
        allow_code: Whether the code of a user's own generator may be run.
    """

    name: ClassVar[str] = "given"
    needs: ClassVar[tuple[Access, ...]] = ("inputs",)
    prepares_for: ClassVar[Preparation] = "nothing"
    transforms_inputs: ClassVar[bool] = True
    folder: str = ""
    allow_code: bool = field(default=False, kw_only=True, metadata={"option": False})

    def __post_init__(self) -> None:
        require(bool(self.folder), "given must have the folder of a NeuralFuse, given:folder=runs/fuse: got none.")
        _ = self.what  # read now, so that `protect` notices a later change of the folder

    @cached_property
    def what(self) -> tuple[str, str]:
        """The generator's name and a digest of the module's files."""
        name = self._read(self.folder).name
        digest = hashlib.sha256()
        for file in ("config.json", "model.safetensors"):
            digest.update((Path(self.folder) / file).read_bytes())
        return name, digest.hexdigest()

    @property
    def generator(self) -> str:
        """The generator's name."""
        return self.what[0]

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`; the module is copied to ``context.folder``, so that it stays the same."""
        _check_place(protected)
        own = context.folder
        if not (own / "config.json").exists():
            require(
                replace(self).what == self.what,
                f"{self.folder} must not change during the comparison: it now holds another module.",
            )
            self._read(self.folder).save_pretrained(own)
        fuse = self._read(own).to(context.device)
        check_same_range(fuse, protected.deployed)
        return replace(protected, fuse=fuse)

    def _read(self, folder: Path | str) -> NeuralFuse:
        return NeuralFuse.from_pretrained(folder, allow_code=self.allow_code)

    @property
    def label(self) -> str:
        """The method and the folder."""
        return f"{self.name}:folder={self.folder}"

    def to_config(self) -> dict[str, Any]:
        """Return what identifies the module: its generator and a digest, but not its folder."""
        generator, digest = self.what
        return {"method": self.name, "generator": generator, "module": digest}


def _check_place(protected: Protected) -> None:
    """Raise a `ConfigError` unless a NeuralFuse may be added to this protected model."""
    require(protected.fuse is None, "there must be at most one NeuralFuse before a model: got two.")
    require(protected.prepared is None, "NeuralFuse must come before a method that prepares each chip's model.")
