"""Steps that measure: accuracy on unseen chips, and the latency of one image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from neuralfuse.data import DataSet
from neuralfuse.energy import latency
from neuralfuse.faults import FaultModel
from neuralfuse.fuse import NeuralFuse
from neuralfuse.memory import deploy
from neuralfuse.nets import base_model
from neuralfuse.pipeline import make_evaluation
from neuralfuse.quant import Scheme
from neuralfuse.ranges import InputRange
from neuralfuse.runs import RunInfo
from neuralfuse.seeds import derive
from neuralfuse.steps.scale import FACTS, ImageSpec
from neuralfuse.steps.step import Step, counts
from neuralfuse.steps.trainings import BaseStep, ModuleStep
from neuralfuse.steps.workspace import Workspace


@dataclass(frozen=True)
class EvaluationStep(Step):
    """Measure a base model on unseen chips, alone or behind a NeuralFuse.

    Attributes:
        base: The step of the base model.
        module: The step of the NeuralFuse; None for none.
        faults: The fault model.
        chips: Maximum number of unseen chips.
        bits: Width of a stored word.
        until: Width of the 95% interval, in points, at which to stop early; None for all chips.
        test_images: Number of test images; 0 for all.
    """

    base: BaseStep
    module: ModuleStep | None
    faults: FaultModel
    chips: int
    bits: int = 8
    until: float | None = None
    test_images: int = 0

    kind = "evaluation"

    @property
    def alone(self) -> EvaluationStep:
        """The step that measures the base model on all of these chips without NeuralFuse."""
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
            "faults": self.faults.to_config(),
            "bits": self.bits,
            **({} if self.bits == Scheme.bits else {"rounding": Scheme.rounding}),
            "chips": self.chips,
            "until": self.until,
            "test_images": self.test_images,
        }

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`."""
        store, folder = workspace.store, workspace.store.folder(self.address)
        done = 0

        def say(text: str) -> None:
            nonlocal done
            done += 1
            store.tell(self.address, done=done, total=self.chips, note=text)

        plain = None
        if self.module is not None:
            before = store.record(self.alone.address)
            plain = None if before is None else before["result"]
        fuse = None
        if self.module is not None:
            made = store.folder(self.module.address)
            fuse = NeuralFuse.from_pretrained(made, allow_code=self.module.generator)  # the user named this code
            fuse = fuse.to(workspace.device)
        record = make_evaluation(
            fuse, self.base.open(workspace, self.bits), self._data(workspace), self.faults, chips=self.chips,
            until=self.until, plain=plain, out=folder / "evaluation.json", resume=True, say=say,
        )  # fmt: skip
        return (
            record if plain is None else {**record, "alone": {name: plain[name] for name in ("pa", "pa_sd", "chips")}}
        )

    def _data(self, workspace: Workspace) -> DataSet:
        """Return the data set with ``test_images`` of its test images, the same in every run."""
        data = workspace.images(self.base.images)
        if not self.test_images:
            return data
        rows = data.test.order(data.name, "test images")[: self.test_images]
        return replace(data, test=data.test[rows.sort().values])

    @property
    def title(self) -> str:
        """See `Step`."""
        bits = "" if self.bits == Scheme.bits else f", {self.bits} bits"
        fuse = "" if self.module is None else f", behind {self.module.generator} ({self.module.against})"
        at = f"{self.faults.ber:.4g} {self.faults.kind}"
        return f"evaluate {self.base.network} on {self.base.images.name}, {at}{bits}{fuse}"

    @property
    def macs(self) -> float:
        """See `Step`."""
        images = self.base.images
        tested = min(self.test_images or FACTS[images.name].test, FACTS[images.name].test)
        own = 0 if self.module is None else counts(self.module.generator, images).macs
        return float(tested * (own + (1 + self.chips) * counts(self.base.network, images).macs))


@dataclass(frozen=True)
class LatencyStep(Step):
    """Measure the latency of one image without and with NeuralFuse, on untrained weights.

    Attributes:
        images: The data set, for the image size.
        network: The base model's name.
        generator: The generator's name; None for none.
        device: Device to measure on.
    """

    images: ImageSpec
    network: str
    generator: str | None
    device: str

    kind = "latency"

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return asdict(self)

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`; the record holds only a ``run``, because latencies vary from run to run."""
        run = RunInfo(torch.device(workspace.device))
        facts = FACTS[self.images.name]
        size = (self.images.size or facts.size,) * 2
        seed = derive("latency") >> 1
        base = base_model(self.network, classes=facts.classes, channels=facts.channels, image_size=size, seed=seed)
        deployed = deploy(base.to(workspace.device))
        fuse = None
        if self.generator is not None:
            fuse = NeuralFuse(
                self.generator, channels=facts.channels, image_size=size, input_range=InputRange(), seed=seed
            ).to(workspace.device).eval()  # fmt: skip
        image = torch.zeros(1, facts.channels, *size, device=workspace.device)
        return {"run": {**run.collect(), "latency_seconds": latency(deployed, fuse, image)}}

    @property
    def title(self) -> str:
        """See `Step`."""
        return f"time {self.network} on {self.images.name}" + (f" behind {self.generator}" if self.generator else "")

    @property
    def macs(self) -> float:
        """See `Step`."""
        names = [self.network, *([self.generator] if self.generator else [])]
        return float(33 * 2 * sum(counts(name, self.images).macs for name in names))
