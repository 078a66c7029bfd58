"""Protection that is trained: base models made anew, and input transforms."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from neuralfuse.config import QatConfig
from neuralfuse.errors import require
from neuralfuse.fuse import NeuralFuse
from neuralfuse.methods.base import Access, Method, Protected, Setting
from neuralfuse.nets import BASE_MODELS, BaseModel, load_base
from neuralfuse.pipeline import make_base, make_fuse


@dataclass(frozen=True)
class Retrained(Method):
    """The base model is trained anew from its first weights, by its own recipe with something changed."""

    needs: ClassVar[tuple[Access, ...]] = ("weights", "training")

    @abstractmethod
    def changes(self, setting: Setting) -> dict[str, Any]:
        """Return the fields of `QatConfig` that differ."""

    def protect(self, made: Protected, setting: Setting) -> Protected:
        """See `Method`."""
        recipe = replace(recipe_of(made.model), **self.changes(setting))
        folder = setting.folder
        if not (folder / "training.json").exists():
            make_base(
                made.model.name, setting.data, recipe,
                out=folder, resume=True, listeners=setting.listeners, device=setting.device,
            )  # fmt: skip
        base = load_base(folder)
        return replace(made.holding(base.module.to(setting.device)), model=base)


def recipe_of(model: BaseModel) -> QatConfig:
    """Return how a base model was trained.

    Raises:
        ConfigError: it is not known.
    """
    config, known = model.trained.get("config", {}), {one.name for one in fields(QatConfig)}
    require(
        model.name in BASE_MODELS and "epochs" in config,
        f"to be trained anew, a base model must come from neuralfuse train-base: {model.name} does not.",
    )
    return QatConfig(**{name: value for name, value in config.items() if name in known})


@dataclass(frozen=True)
class WeightClipping(Retrained):
    """Weights are kept within a limit while they learn, so that the information is spread over many of them.

    Attributes:
        limit: Largest magnitude of a weight.
    Source:
        Stutz et al., MLSys 2021 (arXiv 2006.13977), section 4.2.
    """

    name: ClassVar[str] = "weight-clipping"
    limit: float = 0.1

    def changes(self, setting: Setting) -> dict[str, Any]:
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

    def changes(self, setting: Setting) -> dict[str, Any]:
        """See `Retrained`."""
        return {"clip": self.limit, "ber": setting.faults.ber, "faults": setting.faults.kind}


@dataclass(frozen=True)
class AdversarialWeights(Retrained):
    """Adversarial weight perturbation: the model learns at the weights nearby at which its loss is worst.

    Attributes:
        gamma: Length of a tensor's move, as a share of its norm.
    Source:
        Wu, Xia, Wang, NeurIPS 2020 (arXiv 2004.05884).
    """

    name: ClassVar[str] = "awp"
    gamma: float = 0.01

    def changes(self, setting: Setting) -> dict[str, Any]:
        """See `Retrained`."""
        return {"awp": self.gamma}


@dataclass(frozen=True)
class Fused(Method):
    """NeuralFuse before the model as the methods before this one left it, trained against its faults.

    Attributes:
        generator: A key of `GENERATORS`.
    """

    name: ClassVar[str] = "neuralfuse"
    needs: ClassVar[tuple[Access, ...]] = ("inputs", "gradients")
    generator: str = "convl"

    def protect(self, made: Protected, setting: Setting) -> Protected:
        """See `Method`."""
        require(made.fuse is None, "only one NeuralFuse may stand before a model: two were put together.")
        folder, eopm = setting.folder, setting.eopm
        if self.generator == "uip":
            eopm = replace(eopm, class_head=0.0)  # does not look at the image
        if not (folder / "training.json").exists():
            make_fuse(
                self.generator, [(made.model, made.deployed)], setting.data,
                replace(eopm, ber=setting.faults.ber, faults=setting.faults.kind),
                faults=setting.faults, start=setting.starts.get(self.generator), out=folder, resume=True,
                listeners=setting.listeners, device=setting.device,
            )  # fmt: skip
        return replace(made, fuse=NeuralFuse.from_pretrained(folder).to(setting.device))
