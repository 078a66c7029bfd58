"""Protection by training the base model anew, and the smaller model that it is measured against."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from neuralfuse.config import QatConfig
from neuralfuse.energy import count
from neuralfuse.errors import require
from neuralfuse.faults import FaultModel, default_curve, from_config
from neuralfuse.methods.base import Access, Method, Preparation, Protected, TrainingContext, Workload, check_option
from neuralfuse.nets import (
    BASE_MODELS,
    BaseModel,
    DeployedBase,
    base_spec,
    load_base,
)
from neuralfuse.pipeline import make_base


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
