"""Steps that train: a base model, a pretrained generator, a NeuralFuse."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.faults import FaultModel
from neuralfuse.nets import DeployedBase, code_of, load_base
from neuralfuse.pipeline import make_base, make_fuse, make_start
from neuralfuse.quant import Scheme
from neuralfuse.steps.scale import FACTS, ImageSpec
from neuralfuse.steps.step import Step, counts
from neuralfuse.steps.store import Store
from neuralfuse.steps.workspace import Workspace


@dataclass(frozen=True)
class BaseStep(Step):
    """Train a base model.

    Attributes:
        images: The data set.
        network: The base model's name.
        qat: The recipe.
    """

    images: ImageSpec
    network: str
    qat: QatConfig

    kind = "base"

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {"images": asdict(self.images), "network": self.network, "qat": self.qat.to_config()}

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`."""
        folder = workspace.store.folder(self.address)
        return make_base(
            self.network, workspace.images(self.images), self.qat, out=folder, resume=True,
            listeners=[ProgressNote(workspace.store, self.address)], device=torch.device(workspace.device),
        )  # fmt: skip

    def open(self, workspace: Workspace, bits: int | None = None) -> DeployedBase:
        """Return the trained model in its memory. If ``bits`` is another word width, quantize the weights again."""
        model = load_base(workspace.store.folder(self.address))
        scheme = model.scheme if bits in (None, model.scheme.bits) else Scheme(bits=bits)
        return DeployedBase.of(model, workspace.device, scheme=scheme)

    @property
    def title(self) -> str:
        """See `Step`."""
        return f"train {self.network} on {self.images.name}" + (" with AWP" if self.qat.awp else "")

    @property
    def macs(self) -> float:
        """See `Step`."""
        return self.qat.macs(FACTS[self.images.name].train, counts(self.network, self.images).macs)


@dataclass(frozen=True)
class StartStep(Step):
    """Pretrain a generator on the classes. All NeuralFuse modules with this generator start from it.

    Attributes:
        images: The data set.
        generator: The generator's name.
        pretrain: The recipe.
    """

    images: ImageSpec
    generator: str
    pretrain: QatConfig

    kind = "start"

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {
            "images": asdict(self.images),
            "generator": self.generator,
            **code_of(self.generator),
            "pretrain": self.pretrain.to_config(),
        }

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`."""
        return make_start(
            self.generator, workspace.images(self.images), self.pretrain, out=workspace.store.folder(self.address),
            resume=True, listeners=[ProgressNote(workspace.store, self.address)], device=torch.device(workspace.device),
        )  # fmt: skip

    @property
    def title(self) -> str:
        """See `Step`."""
        return f"teach {self.generator} the classes of {self.images.name}"

    @property
    def macs(self) -> float:
        """See `Step`."""
        return self.pretrain.macs(FACTS[self.images.name].train, counts(self.generator, self.images).macs)


@dataclass(frozen=True)
class ModuleStep(Step):
    """Train a NeuralFuse against one or several base models.

    Attributes:
        bases: The steps of the base models.
        generator: The generator's name.
        faults: The fault model to train against.
        eopm: The recipe.
        start: The step that pretrains the generator; None for none.
    """

    bases: tuple[BaseStep, ...]
    generator: str
    faults: FaultModel
    eopm: EopmConfig
    start: StartStep | None = None

    kind = "module"

    @property
    def needs(self) -> tuple[Step, ...]:
        """See `Step`."""
        return self.bases if self.start is None else (*self.bases, self.start)

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {
            "bases": [base.address for base in self.bases],
            "generator": self.generator,
            **code_of(self.generator),
            "eopm": training_config(self.eopm, self.faults),
            **({} if self.start is None else {"start": self.start.address}),
        }

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`."""
        start = None if self.start is None else workspace.store.folder(self.start.address)
        return make_fuse(
            self.generator, [base.open(workspace) for base in self.bases], workspace.images(self.bases[0].images),
            self.eopm, faults=self.faults, start=start, out=workspace.store.folder(self.address), resume=True,
            listeners=[ProgressNote(workspace.store, self.address)], device=torch.device(workspace.device),
        )  # fmt: skip

    @property
    def title(self) -> str:
        """See `Step`."""
        names = "+".join(base.network for base in self.bases)
        return f"train {self.generator} for {names} on {self.bases[0].images.name}, {self.against}"

    @property
    def against(self) -> str:
        """The faults of the training and unusual options, in a few words."""
        eopm = self.eopm
        bits = f"{eopm.adversarial_bits} worst bits"
        if not eopm.adversarial_bits:
            bits = f"{self.faults.ber:.4g} {self.faults.kind}"
        changed = [("lambda", eopm.lam, EopmConfig.lam), ("N", eopm.n_chips, EopmConfig.n_chips)]
        return ", ".join([bits, *(f"{name} {value:g}" for name, value, usual in changed if value != usual)])

    @property
    def macs(self) -> float:
        """See `Step`."""
        images = self.bases[0].images
        bases = sum(counts(base.network, images).macs for base in self.bases) / len(self.bases)
        return self.eopm.macs(FACTS[images.name].train, bases, counts(self.generator, images).macs)


def training_config(eopm: EopmConfig, faults: FaultModel) -> dict[str, Any]:
    """Return a NeuralFuse's recipe and fault model as JSON, in the form that keeps the addresses of finished steps."""
    return {**eopm.to_config(), **faults.short_config()}


class ProgressNote:
    """A listener that writes a training's progress to the store, about every second."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self.noted = store, name, 0.0

    def stepped(self, step: int, total: int, losses: Mapping[str, float]) -> None:
        """Write a note, unless the last one is less than a second old."""
        if time.monotonic() - self.noted > 1 or step == total:
            note = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.store.tell(self.name, done=step, total=total, note=note)
            self.noted = time.monotonic()

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
