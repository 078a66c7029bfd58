"""The steps that tables are made of: train a base model, train a NeuralFuse, evaluate, measure a latency."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import torch

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import DataSet
from neuralfuse.energy import GENERATOR_LAYERS, Counts, count, latency
from neuralfuse.evaluation import Run
from neuralfuse.faults import fault_model
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import Deployed, deploy
from neuralfuse.nets import BASE_MODELS, GENERATORS, BaseModel, base_model, load_base
from neuralfuse.pipeline import make_base, make_fuse, measure
from neuralfuse.quant import DEFAULT_LAYERS, Scheme
from neuralfuse.ranges import InputRange
from neuralfuse.reproduce.place import Place
from neuralfuse.reproduce.scale import FACTS, Images
from neuralfuse.reproduce.store import Store, address
from neuralfuse.seeds import derive, generator


class Step(ABC):
    """Something that is done once; its address says what it depends on."""

    kind: ClassVar[str]

    @property
    def needs(self) -> tuple[Step, ...]:
        """The steps that must be finished before."""
        return ()

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return all that the result depends on, with the steps that it needs by their addresses."""

    @abstractmethod
    def perform(self, place: Place) -> dict[str, Any]:
        """Do it, going on from what an interrupted run left in its folder; return its record."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it does, in a few words."""

    @property
    @abstractmethod
    def macs(self) -> float:
        """About how many multiplications it takes, at most."""

    @cached_property
    def address(self) -> str:
        """Its name in a store."""
        return address(self.kind, self.config())


@dataclass(frozen=True)
class BaseStep(Step):
    """Train a base model."""

    images: Images
    network: str
    qat: QatConfig

    kind = "base"

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {"images": asdict(self.images), "network": self.network, "qat": self.qat.to_config()}

    def perform(self, place: Place) -> dict[str, Any]:
        """See `Step`."""
        folder = place.store.folder(self.address)
        return make_base(
            self.network, place.images(self.images), self.qat, out=folder, resume=True,
            listeners=[_Telling(place.store, self.address)], device=torch.device(place.device),
        )  # fmt: skip

    def open(self, place: Place, bits: int = 8) -> tuple[BaseModel, Deployed]:
        """Return the trained model, deployed; below its own width its weights are cut down as in the paper."""
        model = load_base(place.store.folder(self.address))
        scheme = model.scheme if bits == model.scheme.bits else Scheme(bits=bits, rounding="floor")
        return model, deploy(model.module.to(place.device), scheme=scheme, input_range=model.input_range)

    @property
    def title(self) -> str:
        """See `Step`."""
        return f"train {self.network} on {self.images.name}" + (" with AWP" if self.qat.awp else "")

    @property
    def macs(self) -> float:
        """See `Step`."""
        facts = FACTS[self.images.name]
        images = _images_seen(self.qat.epochs, self.qat.max_steps, self.qat.batch, facts.train)
        return (6.0 if self.qat.awp else 3.0) * images * counts(self.network, self.images).macs


@dataclass(frozen=True)
class ModuleStep(Step):
    """Train a NeuralFuse against one or several base models."""

    bases: tuple[BaseStep, ...]
    generator: str
    eopm: EopmConfig

    kind = "module"

    @property
    def needs(self) -> tuple[Step, ...]:
        """See `Step`."""
        return self.bases

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {
            "bases": [base.address for base in self.bases],
            "generator": self.generator,
            "eopm": self.eopm.to_config(),
        }

    def perform(self, place: Place) -> dict[str, Any]:
        """See `Step`."""
        return make_fuse(
            self.generator, [base.open(place) for base in self.bases], place.images(self.bases[0].images), self.eopm,
            out=place.store.folder(self.address), resume=True, listeners=[_Telling(place.store, self.address)],
            device=torch.device(place.device),
        )  # fmt: skip

    @property
    def title(self) -> str:
        """See `Step`."""
        names = "+".join(base.network for base in self.bases)
        return f"train {self.generator} for {names} on {self.bases[0].images.name}, {self.against}"

    @property
    def against(self) -> str:
        """What it is trained against, in a few words."""
        eopm = self.eopm
        bits = f"{eopm.adversarial_bits} worst bits" if eopm.adversarial_bits else f"{eopm.ber:.4g} {eopm.faults}"
        changed = [("lambda", eopm.lam, EopmConfig.lam), ("N", eopm.n_chips, EopmConfig.n_chips)]
        return ", ".join([bits, *(f"{name} {value:g}" for name, value, usual in changed if value != usual)])

    @property
    def macs(self) -> float:
        """See `Step`."""
        eopm, images = self.eopm, self.bases[0].images
        seen = _images_seen(eopm.epochs, eopm.max_steps, eopm.batch, FACTS[images.name].train)
        passes = 1 + (eopm.n_chips if eopm.estimator == "crossed" else 1) + (eopm.adversarial_bits > 0)
        bases = sum(counts(base.network, images).macs for base in self.bases) / len(self.bases)
        return seen * (3 * counts(self.generator, images).macs + 2 * passes * bases)


@dataclass(frozen=True)
class EvaluationStep(Step):
    """Measure a base model on unseen chips, alone or behind a NeuralFuse."""

    base: BaseStep
    module: ModuleStep | None
    faults: str
    ber: float
    chips: int
    bits: int = 8
    until: float | None = None
    test_images: int = 0

    kind = "evaluation"

    @property
    def alone(self) -> EvaluationStep:
        """The same base model on the same chips, all of them, without NeuralFuse."""
        return replace(self, module=None, until=None)

    @property
    def needs(self) -> tuple[Step, ...]:
        """See `Step`."""
        return (self.base,) if self.module is None else (self.base, self.module, self.alone)

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {
            "base": self.base.address,
            "module": None if self.module is None else self.module.address,
            "faults": fault_model(self.faults, ber=self.ber).to_config(),
            "bits": self.bits,
            "chips": self.chips,
            "until": self.until,
            "test_images": self.test_images,
        }

    def perform(self, place: Place) -> dict[str, Any]:
        """See `Step`."""
        store, folder = place.store, place.store.folder(self.address)
        done = 0

        def say(text: str) -> None:
            nonlocal done
            done += 1
            store.tell(self.address, done=done, total=self.chips, note=text)

        plain = None
        if self.module is not None:
            before = store.record(self.alone.address)
            plain = None if before is None else before["result"]
        record = measure(
            None if self.module is None else store.folder(self.module.address), self.base.open(place, self.bits),
            self._data(place), fault_model(self.faults, ber=self.ber), chips=self.chips, until=self.until, plain=plain,
            out=folder / "evaluation.json", resume=True, say=say,
        )  # fmt: skip
        return (
            record if plain is None else {**record, "alone": {name: plain[name] for name in ("pa", "pa_sd", "chips")}}
        )

    def _data(self, place: Place) -> DataSet:
        """Return the data with the test images that count: the first of an order that is the same for ever."""
        data = place.images(self.base.images)
        if not self.test_images:
            return data
        order = torch.randperm(len(data.test), generator=generator(data.name, "test images"))
        return replace(data, test=data.test[order[: self.test_images].sort().values.to(data.test.images.device)])

    @property
    def title(self) -> str:
        """See `Step`."""
        bits = "" if self.bits == Scheme.bits else f", {self.bits} bits"
        fuse = "" if self.module is None else f", behind {self.module.generator} ({self.module.against})"
        return f"evaluate {self.base.network} on {self.base.images.name}, {self.ber:.4g} {self.faults}{bits}{fuse}"

    @property
    def macs(self) -> float:
        """See `Step`."""
        images = self.base.images
        tested = min(self.test_images or FACTS[images.name].test, FACTS[images.name].test)
        own = 0 if self.module is None else counts(self.module.generator, images).macs
        return float(tested * (own + (1 + self.chips) * counts(self.base.network, images).macs))


@dataclass(frozen=True)
class LatencyStep(Step):
    """Measure how long one image takes, without and with NeuralFuse; what the weights are does not matter."""

    images: Images
    network: str
    generator: str | None
    device: str

    kind = "latency"

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return asdict(self)

    def perform(self, place: Place) -> dict[str, Any]:
        """See `Step`; all that is measured varies from run to run."""
        run = Run(torch.device(place.device))
        facts = FACTS[self.images.name]
        size = (self.images.size or facts.size,) * 2
        seed = derive("latency") >> 1
        base = base_model(self.network, classes=facts.classes, channels=facts.channels, image_size=size, seed=seed)
        deployed = deploy(base.to(place.device))
        fuse = None
        if self.generator is not None:
            fuse = NeuralFuse(
                self.generator, channels=facts.channels, image_size=size, input_range=InputRange(), seed=seed
            ).to(place.device).eval()  # fmt: skip
        image = torch.zeros(1, facts.channels, *size, device=place.device)
        return {"run": {**run.facts(), "latency_seconds": latency(deployed, fuse, image)}}

    @property
    def title(self) -> str:
        """See `Step`."""
        return f"time {self.network} on {self.images.name}" + (f" behind {self.generator}" if self.generator else "")

    @property
    def macs(self) -> float:
        """See `Step`."""
        names = [self.network, *([self.generator] if self.generator else [])]
        return float(33 * 2 * sum(counts(name, self.images).macs for name in names))


class _Telling:
    """Leaves a note of a training's progress in the store, every second or so."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self.told = store, name, 0.0

    def stepped(self, step: int, total: int, losses: Mapping[str, float]) -> None:
        if time.monotonic() - self.told > 1 or step == total:
            note = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.store.tell(self.name, done=step, total=total, note=note)
            self.told = time.monotonic()

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def _images_seen(epochs: int, max_steps: int, batch: int, train: int) -> float:
    steps = epochs * (train // min(batch, train))
    return float(min(steps, max_steps or steps) * batch)


@cache
def counts(name: str, images: Images) -> Counts:
    """Return what one pass of a base model or generator over one of these images takes."""
    facts = FACTS[images.name]
    size = (images.size or facts.size,) * 2
    own = name in GENERATORS
    if name == "uip":  # adds to the image and multiplies nothing
        return Counts.none()
    with torch.device("meta"):
        if own:
            network = GENERATORS[name](facts.channels, size)
        else:
            network = BASE_MODELS[name].build(classes=facts.classes, channels=facts.channels)
    layers = GENERATOR_LAYERS if own else DEFAULT_LAYERS
    return count(network, channels=facts.channels, image_size=size, layers=layers)
