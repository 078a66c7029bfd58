"""Protection that is trained: base models made anew, and input transforms."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.energy import count
from neuralfuse.errors import require
from neuralfuse.faults import FaultModel, default_curve, from_config
from neuralfuse.fuse import NeuralFuse, check_same_range
from neuralfuse.methods.base import Access, Method, Preparation, Protected, TrainingContext, Workload, check_option
from neuralfuse.nets import (
    BASE_MODELS,
    BaseModel,
    DeployedBase,
    base_spec,
    check_generator,
    code_of,
    encodes_images,
    load_base,
    runs_foreign_code,
)
from neuralfuse.pipeline import make_base, make_fuse


@dataclass(frozen=True)
class Retrained(Method):
    """The base model is trained anew from its first weights, by its own recipe with something changed."""

    needs: ClassVar[tuple[Access, ...]] = ("weights", "training")
    first: ClassVar[bool] = True

    @abstractmethod
    def changes(self) -> dict[str, Any]:
        """Return the fields of `QatConfig` that differ from the base model's recipe."""

    def training_macs(self, work: Workload) -> float:
        """See `Method`: twice the base model's own, at most."""
        return 2 * work.qat.macs(work.train_images, work.base)

    def errors(self, context: TrainingContext) -> FaultModel | None:
        """Return the bit errors to train with; None for those of the base model's recipe, if it had any."""
        return None

    def protect(self, made: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        recipe, errors = recipe_of(made.model)
        return trained_anew(
            made, context, made.model.name, replace(recipe, **self.changes()), self.errors(context) or errors
        )


def trained_anew(
    made: Protected, context: TrainingContext, name: str, recipe: QatConfig, errors: FaultModel | None
) -> Protected:
    """Return the same with a trained network of the registry. The network is trained unless the folder holds it."""
    folder = context.folder
    if not (folder / "config.json").exists():
        make_base(
            name, context.data, recipe, faults=errors, out=folder, resume=True, listeners=context.listeners,
            device=context.device,
        )  # fmt: skip
    model = load_base(folder)
    held = made.holding(model.module.to(context.device))
    return replace(held, base=DeployedBase(model, held.deployed))


def recipe_of(model: BaseModel) -> tuple[QatConfig, FaultModel | None]:
    """Return how a base model was trained, and the bit errors that it was trained with (RandBET), if any.

    Raises:
        ConfigError: it is not known.
    """
    config, known = model.trained.get("config", {}), {one.name for one in fields(QatConfig)}
    require(
        model.name.partition("@")[0] in BASE_MODELS and "epochs" in config,
        f"to be trained anew, a base model must come from neuralfuse train-base: {model.name} does not.",
    )
    recipe = QatConfig(**{name: value for name, value in config.items() if name in known})
    if not config.get("ber"):
        return recipe, None
    named = {"kind": config["faults"], "ber": config["ber"]}
    return recipe, from_config(config.get("fault_model", named))


@dataclass(frozen=True)
class WeightClipping(Retrained):
    """Weights are kept within a limit while they learn, so that the information is spread over many of them.

    Attributes:
        limit: Largest magnitude of a weight.
    Source:
        Stutz et al., MLSys 2021 (arXiv 2006.13977), section 4.2.
    """

    name: ClassVar[str] = "weight-clipping"
    prepares_for: ClassVar[Preparation] = "nothing"
    limit: float = 0.1

    def __post_init__(self) -> None:
        check_option("limit", self.limit, 0)

    def changes(self) -> dict[str, Any]:
        """See `Retrained`."""
        return {"clip": self.limit}


@dataclass(frozen=True)
class RandBet(Retrained):
    """Random bit error training: weight clipping, and the loss on a fresh faulty chip beside the clean one.

    Attributes:
        limit: Largest magnitude of a weight; 0 for no limit.
    Source:
        Stutz et al., MLSys 2021 (arXiv 2006.13977), section 4.3 and Algorithm 1.
    """

    name: ClassVar[str] = "randbet"
    limit: float = 0.1

    def __post_init__(self) -> None:
        check_option("limit", self.limit, 0)

    def changes(self) -> dict[str, Any]:
        """See `Retrained`."""
        return {"clip": self.limit}

    def errors(self, context: TrainingContext) -> FaultModel:
        """See `Retrained`."""
        return context.faults


@dataclass(frozen=True)
class AdversarialWeights(Retrained):
    """Adversarial weight perturbation: the model learns at the weights nearby at which its loss is worst.

    Attributes:
        gamma: Length of a tensor's move, as a share of its norm.
    Source:
        Wu, Xia, Wang, NeurIPS 2020 (arXiv 2004.05884).
    """

    name: ClassVar[str] = "awp"
    prepares_for: ClassVar[Preparation] = "nothing"
    gamma: float = 0.01

    def __post_init__(self) -> None:
        check_option("gamma", self.gamma, 0, 0.99)

    def changes(self) -> dict[str, Any]:
        """See `Retrained`."""
        return {"awp": self.gamma}


@dataclass(frozen=True)
class Smaller(Method):
    """Not a protection: the smaller member of the model's family that costs the same energy at full voltage.

    It has the most channels with which its weight accesses there cost no more than the model's own at the voltage of
    the faults, and is trained by the model's recipe. No cell of it fails.

    Attributes:
        width: Channels of its first stage; 0 to find them so.
    """

    name: ClassVar[str] = "smaller"
    needs: ClassVar[tuple[Access, ...]] = ("weights", "training")
    prepares_for: ClassVar[Preparation] = "rate"
    first: ClassVar[bool] = True
    width: int = 0

    def __post_init__(self) -> None:
        check_option("width", self.width, 0, 4096)

    def protect(self, made: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        width = self.width or same_energy_width(made.model, context.faults)
        held = trained_anew(made, context, f"{made.model.name.partition('@')[0]}@{width}", *recipe_of(made.model))
        return replace(held, hardened=held.deployed.memory.layout.bits)

    def check_rate(self, ber: float) -> None:
        """See `Method`."""
        known = self.width or default_curve().energy_at_rate(ber) is not None
        require(
            bool(known),
            f"the train rate must be one whose voltage is known to find a smaller model of its energy: got {ber:g}. "
            "Name its width (smaller:width=12), or leave it out.",
        )

    def training_macs(self, work: Workload) -> float:
        """See `Method`: as much as the model's own, at most."""
        return 2 * work.qat.macs(work.train_images, work.base)


def same_energy_width(model: BaseModel, faults: FaultModel) -> int:
    """Return the width of `Smaller`."""
    curve, size = default_curve(), model.image_size
    spec = base_spec(model.name)

    def accesses(width: int) -> float:
        with torch.device("meta"):
            network = spec.member(width)(classes=model.classes, channels=model.channels)
        return count(network, channels=model.channels, image_size=size).paper_accesses

    most = accesses(spec.width) * curve.energy(curve.voltage(faults.ber))
    fits = [width for width in range(1, spec.width + 1) if accesses(width) <= most]
    require(len(fits) > 0, f"the family of {model.name} must have a member that costs as little: none does.")
    return max(fits)


@dataclass(frozen=True)
class Fused(Method):
    """NeuralFuse before the model as the methods before this one left it, trained against its faults.

    Attributes:
        generator: A key of `GENERATORS`, a plugin's name, or ``package.module:factory`` (runs that code).
    """

    name: ClassVar[str] = "neuralfuse"
    needs: ClassVar[tuple[Access, ...]] = ("inputs", "gradients")
    transforms_inputs: ClassVar[bool] = True
    generator: str = "convl"

    def __post_init__(self) -> None:
        check_generator(self.generator)

    def protect(self, made: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        _check_place(made)
        folder, faults, data = context.folder, made.faults_left(context.faults), context.data
        if not (folder / "config.json").exists():
            encodes = encodes_images(self.generator, data.channels, data.image_size)
            eopm = self.neuralfuse_training(context.eopm, encodes=encodes)
            make_fuse(
                self.generator, [made.base], data, eopm, faults=faults,
                start=context.starts.get(self.generator), out=folder, resume=True,
                listeners=context.listeners, device=context.device,
            )  # fmt: skip
        own = runs_foreign_code(self.generator)  # which the user has named
        return replace(made, fuse=NeuralFuse.from_pretrained(folder, allow_code=own).to(context.device))

    def neuralfuse_training(self, eopm: EopmConfig, *, encodes: bool) -> EopmConfig:
        """See `Method`: a generator that does not encode the image learns no classes."""
        return eopm if encodes else replace(eopm, class_head=0.0)

    def training_macs(self, work: Workload) -> float:
        """See `Method`."""
        return work.eopm.macs(work.train_images, work.base, work.generator)

    def to_config(self) -> dict[str, Any]:
        """Return the generator, and what tells whether the code of a user's own is the same."""
        return {**super().to_config(), **code_of(self.generator)}

    @property
    def label(self) -> str:
        """The generator's name."""
        return self.generator


@dataclass(frozen=True)
class Given(Method):
    """A NeuralFuse that is there already, trained for this model or for one like it.

    Attributes:
        folder: Where `neuralfuse train` wrote it.
        allow_code: Whether the code of a generator of a user's own may be run.
    """

    name: ClassVar[str] = "given"
    needs: ClassVar[tuple[Access, ...]] = ("inputs",)
    prepares_for: ClassVar[Preparation] = "nothing"
    transforms_inputs: ClassVar[bool] = True
    folder: str = ""
    allow_code: bool = field(default=False, kw_only=True, metadata={"option": False})

    def __post_init__(self) -> None:
        require(bool(self.folder), "given must have the folder of a NeuralFuse, given:folder=runs/fuse: got none.")
        _ = self.what  # now, so that what is measured later is what was asked for

    @cached_property
    def what(self) -> tuple[str, str]:
        """The generator's name, and a digest of the module's files."""
        name = self._read(self.folder).name
        digest = hashlib.sha256()
        for file in ("config.json", "model.safetensors"):
            digest.update((Path(self.folder) / file).read_bytes())
        return name, digest.hexdigest()

    @property
    def generator(self) -> str:
        """The generator's name."""
        return self.what[0]

    def protect(self, made: Protected, context: TrainingContext) -> Protected:
        """See `Method`; the module is copied, so that it stays what it was."""
        _check_place(made)
        own = context.folder
        if not (own / "config.json").exists():
            require(
                replace(self).what == self.what,
                f"{self.folder} must stay as it was while it is compared: it holds another module now.",
            )
            self._read(self.folder).save_pretrained(own)
        fuse = self._read(own).to(context.device)
        check_same_range(fuse, made.deployed)
        return replace(made, fuse=fuse)

    def _read(self, folder: Path | str) -> NeuralFuse:
        return NeuralFuse.from_pretrained(folder, allow_code=self.allow_code)

    @property
    def label(self) -> str:
        """The method and the folder."""
        return f"{self.name}:folder={self.folder}"

    def to_config(self) -> dict[str, Any]:
        """Return which module it is, wherever it lies."""
        generator, digest = self.what
        return {"method": self.name, "generator": generator, "module": digest}


def _check_place(made: Protected) -> None:
    """Raise a `ConfigError` unless a NeuralFuse may be put before what there is."""
    require(made.fuse is None, "only one NeuralFuse may stand before a model: two were put together.")
    require(made.prepared is None, "NeuralFuse must come before a method that prepares each chip's model.")
