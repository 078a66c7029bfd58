"""Protection by retraining the base model, and the smaller model that it is compared with."""

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
    """The base model is retrained from scratch by its own recipe, with some changes."""

    needs: ClassVar[tuple[Access, ...]] = ("weights", "training")
    first: ClassVar[bool] = True

    @abstractmethod
    def changes(self) -> dict[str, Any]:
        """Return the fields of `QatConfig` that differ from the base model's recipe."""

    def training_macs(self, work: Workload) -> float:
        """See `Method`: at most twice the base model's own training."""
        return 2 * work.qat.macs(work.train_images, work.base)

    def errors(self, context: TrainingContext) -> FaultModel | None:
        """Return the bit errors to train with; None for those of the base model's recipe, if any."""
        return None

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        recipe, errors = recipe_of(protected.model)
        return trained_anew(
            protected, context, protected.model.name, replace(recipe, **self.changes()), self.errors(context) or errors
        )


def trained_anew(
    protected: Protected, context: TrainingContext, name: str, recipe: QatConfig, errors: FaultModel | None
) -> Protected:
    """Return a copy with another network of the registry. The network is trained unless the folder already holds it."""
    folder = context.folder
    if not (folder / "config.json").exists():
        make_base(
            name, context.data, recipe, faults=errors, out=folder, resume=True, listeners=context.listeners,
            device=context.device,
        )  # fmt: skip
    model = load_base(folder)
    held = protected.holding(model.module.to(context.device))
    return replace(held, base=DeployedBase(model, held.deployed))


def recipe_of(model: BaseModel) -> tuple[QatConfig, FaultModel | None]:
    """Return the recipe of a base model, and the bit errors that it was trained with (RandBET), if any.

    Raises:
        ConfigError: the base model was not trained by this library, so its recipe is unknown.
    """
    config, options = model.trained.get("config", {}), {one.name for one in fields(QatConfig)}
    require(
        model.name.partition("@")[0] in BASE_MODELS and "epochs" in config,
        f"to be retrained, a base model must come from neuralfuse train-base: {model.name} does not.",
    )
    recipe = QatConfig(**{name: value for name, value in config.items() if name in options})
    if not config.get("ber"):
        return recipe, None
    named = {"kind": config["faults"], "ber": config["ber"]}
    return recipe, from_config(config.get("fault_model", named))


@dataclass(frozen=True)
class WeightClipping(Retrained):
    """Weights are clipped during training, so that information is spread over many of them.

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
    """Random bit error training: weight clipping, and the loss on a fresh chip per step in addition to the clean loss.

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
    """Adversarial weight perturbation: the model is trained at the nearby weights with the highest loss.

    Attributes:
        gamma: Length of each tensor's move, as a share of its norm.
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
    """Not a protection: a smaller member of the model's family that runs at full voltage for the same energy.

    The smaller model is trained by the model's recipe, and none of its cells fails. It is the widest one whose weight
    accesses cost no more energy at full voltage than the model's own at the voltage of the faults.

    Attributes:
        width: Channels of the first stage; 0 for the widest affordable one.
    """

    name: ClassVar[str] = "smaller"
    needs: ClassVar[tuple[Access, ...]] = ("weights", "training")
    prepares_for: ClassVar[Preparation] = "rate"
    first: ClassVar[bool] = True
    width: int = 0

    def __post_init__(self) -> None:
        check_option("width", self.width, 0, 4096)

    def protect(self, protected: Protected, context: TrainingContext) -> Protected:
        """See `Method`."""
        width = self.width or same_energy_width(protected.model, context.faults)
        held = trained_anew(
            protected, context, f"{protected.model.name.partition('@')[0]}@{width}", *recipe_of(protected.model)
        )
        return replace(held, hardened=held.deployed.memory.layout.bits)

    def check_rate(self, ber: float) -> None:
        """See `Method`."""
        has_energy = self.width or default_curve().energy_at_rate(ber) is not None
        require(
            bool(has_energy),
            f"the train rate must be on the voltage curve to find a smaller model of the same energy: got {ber:g}. "
            "Name its width (smaller:width=12), or leave it out.",
        )

    def training_macs(self, work: Workload) -> float:
        """See `Method`: at most the base model's own training."""
        return 2 * work.qat.macs(work.train_images, work.base)


def same_energy_width(model: BaseModel, faults: FaultModel) -> int:
    """Return the width of the model of `Smaller`: the widest that costs no more energy at full voltage."""
    curve, size = default_curve(), model.image_size
    spec = base_spec(model.name)

    def accesses(width: int) -> float:
        with torch.device("meta"):
            network = spec.member(width)(classes=model.classes, channels=model.channels)
        return count(network, channels=model.channels, image_size=size).paper_accesses

    most = accesses(spec.width) * curve.energy(curve.voltage(faults.ber))
    fits = [width for width in range(1, spec.width + 1) if accesses(width) <= most]
    require(len(fits) > 0, f"the family of {model.name} must have a member that costs no more energy: none does.")
    return max(fits)
