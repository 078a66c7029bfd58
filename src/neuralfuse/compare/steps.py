"""Steps of a comparison: copy a given model, add one protection method after the other, measure the result."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neuralfuse.config import EopmConfig, QatConfig
from neuralfuse.data import Split
from neuralfuse.energy import GENERATOR_LAYERS, count
from neuralfuse.errors import require
from neuralfuse.evaluation import ChipResult, PartialRecord
from neuralfuse.faults import FaultModel
from neuralfuse.methods import (
    Method,
    Protected,
    TrainingContext,
    Workload,
    answer_seconds,
    identity,
    measure_protected,
)
from neuralfuse.nets import load_base
from neuralfuse.runs import RunInfo
from neuralfuse.steps.scale import FACTS
from neuralfuse.steps.step import Step, counts, encodes
from neuralfuse.steps.store import file_digest
from neuralfuse.steps.trainings import BaseStep, ModuleStep, ProgressNote, StartStep, training_config
from neuralfuse.steps.workspace import Workspace

PARTIAL = "evaluation.json"
_TIMED = 100  # images per timed batch


@dataclass(frozen=True)
class GivenBase(BaseStep):
    """A base model that the user trained. It is copied, so that all steps use the same one.

    Attributes:
        folder: Folder of the base model.
        digest: Digest of its files.
    """

    folder: Path = Path()
    digest: str = ""

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {"images": asdict(self.images), "network": self.network, "given": self.digest}

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`."""
        run = RunInfo()
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(self.folder / name, workspace.store.folder(self.address) / name)
        copied = digest_of(workspace.store.folder(self.address))
        require(copied == self.digest, f"{self.folder} must not change during the comparison: it was changed.")
        trained = load_base(workspace.store.folder(self.address)).trained
        data = workspace.images(self.images).to_config()
        return {"config": {**trained.get("config", {}), "data": data}, "run": run.collect()}

    @property
    def title(self) -> str:
        """See `Step`."""
        return f"copy {self.network} from {self.folder}"

    @property
    def macs(self) -> float:
        """See `Step`."""
        return 0.0


@dataclass(frozen=True)
class ProtectionStep(Step):
    """Add one method to a base model, after the methods before it.

    Attributes:
        base: The step of the base model.
        methods: The chain of methods. This step adds the last one.
        faults: The fault model that the methods prepare for.
        eopm: Recipe of a NeuralFuse.
        pretrain: Recipe by which generators are first taught the classes; None for none.
    """

    base: BaseStep
    methods: tuple[Method, ...]
    faults: FaultModel
    eopm: EopmConfig
    pretrain: QatConfig | None = None

    kind = "protection"

    @property
    def before(self) -> ProtectionStep | None:
        """The step of the methods before it."""
        return replace(self, methods=self.methods[:-1]) if len(self.methods) > 1 else None

    @property
    def start(self) -> StartStep | None:
        """The step that pretrains the generator; None if the last method does not start from a pretrained one."""
        generator = self.methods[-1].generator
        if self.pretrain is None or self.neuralfuse_training is None or generator is None or not self._encodes:
            return None
        return StartStep(self.base.images, generator, self.pretrain)

    @property
    def module(self) -> ModuleStep | None:
        """The training that the paper's tables share, of a NeuralFuse for the unchanged base model; None otherwise."""
        eopm, generator = self.neuralfuse_training, self.methods[-1].generator
        if self.before is not None or eopm is None or generator is None:
            return None
        return ModuleStep((self.base,), generator, self.faults, eopm, self.start)

    @property
    def neuralfuse_training(self) -> EopmConfig | None:
        """Configuration of the last method's EOPM training; None if it trains no generator."""
        return self.methods[-1].neuralfuse_training(self.eopm, encodes=self._encodes)

    @property
    def _encodes(self) -> bool:
        generator = self.methods[-1].generator
        return generator is not None and encodes(generator, self.base.images)

    @property
    def needs(self) -> tuple[Step, ...]:
        """See `Step`."""
        return (self.base, *(one for one in (self.before, self.start, self.module) if one is not None))

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        last = self.methods[-1]
        return {
            "base": self.base.address,
            "before": None if self.before is None else self.before.address,
            **identity(last),
            **({"eopm": training_config(self.eopm, self.faults)} if last.prepares_for == "faults" else {}),
            **({"ber": self.faults.ber} if last.prepares_for == "rate" else {}),
            **({} if self.start is None else {"start": self.start.address}),
        }

    def protected(self, workspace: Workspace) -> Protected:
        """Return the protected model. Its methods train whatever is not trained yet."""
        protected = self._plain(workspace) if self.before is None else self.before.protected(workspace)
        store = workspace.store
        context = TrainingContext(
            data=workspace.images(self.base.images),
            faults=self.faults,
            eopm=self.eopm,
            starts={} if self.start is None else {self.start.generator: store.folder(self.start.address)},
            folder=store.folder((self.module or self).address),
            device=torch.device(workspace.device),
            listeners=[ProgressNote(store, self.address)],
        )
        return self.methods[-1].protect(protected, context)

    def _plain(self, workspace: Workspace) -> Protected:
        return Protected(base=self.base.open(workspace))

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`."""
        run = RunInfo(torch.device(workspace.device))
        protected = self.protected(workspace)
        channels, *size = workspace.images(self.base.images).test.images.shape[1:]
        layers = protected.deployed.memory.layers
        model = count(protected.model.module, channels=channels, image_size=(size[0], size[1]), layers=layers)
        added = None
        if protected.fuse is not None:
            added = count(protected.fuse, channels=channels, image_size=(size[0], size[1]), layers=GENERATOR_LAYERS)
        memory = protected.deployed.memory
        images = workspace.images(self.base.images).test.images[:_TIMED]
        inputs = protected.deployed.input_range.from_images(images)
        plain, taken = answer_seconds(protected, self._plain(workspace), inputs)
        return {
            "parameters": model.parameters,
            "added_parameters": protected.added_parameters + (0 if added is None else added.parameters),
            "accesses": model.paper_accesses,
            "added_accesses": protected.added_accesses + (0 if added is None else added.paper_accesses),
            "overhead": memory.readout.overhead(memory.layout),
            "hardened": protected.hardened / memory.layout.bits,
            "passes": protected.passes,
            "run": {**run.collect(), "seconds_a_batch": {"images": len(images), "plain": plain, "protected": taken}},
        }

    @property
    def title(self) -> str:
        """See `Step`."""
        names = " + ".join(method.label for method in self.methods)
        return f"protect {self.base.network} on {self.base.images.name}: {names}"

    @property
    def macs(self) -> float:
        """See `Step`."""
        return 0.0 if self.module else self.methods[-1].training_macs(self.workload)

    @property
    def workload(self) -> Workload:
        """The multiplication counts and recipes of this comparison."""
        images, base = self.base.images, self.base
        generator = next((one.generator for one in self.methods if one.generator is not None), None)
        return Workload(
            base=counts(base.network, images).macs, generator=counts(generator, images).macs if generator else 0.0,
            train_images=FACTS[images.name].train, qat=base.qat, eopm=self.eopm,
        )  # fmt: skip


@dataclass(frozen=True)
class ComparisonStep(Step):
    """Measure a protected model on unseen chips.

    Attributes:
        protection: The step that protects the model.
        faults: The fault model to measure at.
        chips: Number of unseen chips.
        test_images: Number of test images; 0 for all.
    """

    protection: ProtectionStep
    faults: FaultModel
    chips: int
    test_images: int = 0

    kind = "comparison"

    @property
    def needs(self) -> tuple[Step, ...]:
        """See `Step`; the weights lie in the folders of all steps that the protection needs."""
        found: list[Step] = []
        one: ProtectionStep | None = self.protection
        while one is not None:
            found += [one, *one.needs]
            one = one.before
        return tuple(dict.fromkeys(found))

    def config(self) -> dict[str, Any]:
        """See `Step`."""
        return {
            "protection": self.protection.address,
            "faults": self.faults.to_config(),
            "chips": self.chips,
            "test_images": self.test_images,
        }

    def perform(self, workspace: Workspace) -> dict[str, Any]:
        """See `Step`."""
        run = RunInfo(torch.device(workspace.device))
        store = workspace.store
        partial = PartialRecord(store.folder(self.address) / PARTIAL, self.config(), resume=True)

        def keep(result: ChipResult) -> None:
            done = partial.add(result)
            store.tell(self.address, done=done, total=self.chips, note=f"accuracy {result.pa:.2f}%")

        nominal, results = measure_protected(
            self.protection.protected(workspace), self._test_images(workspace), self.faults, self.chips,
            prior=partial.prior(ChipResult), report=keep,
        )  # fmt: skip
        chips = {name: [getattr(one, name) for one in results] for name in ("seed", "pa", "changed_bits")}
        return {"ca": nominal, "per_chip": chips, "run": run.collect()}

    def _test_images(self, workspace: Workspace) -> Split:
        """Return test images in a fixed order that mixes the classes, because some methods use whole batches."""
        data = workspace.images(self.protection.base.images)
        rows = data.test.order(data.name, "test images")
        return data.test[rows[: self.test_images or len(rows)]]

    @property
    def title(self) -> str:
        """See `Step`."""
        return f"{self.protection.title.replace('protect', 'measure', 1)}, {self.faults.ber:.4g} {self.faults.kind}"

    @property
    def macs(self) -> float:
        """See `Step`."""
        images, base = self.protection.base.images, self.protection.base.network
        tested = min(self.test_images or FACTS[images.name].test, FACTS[images.name].test)
        fitting = sum(one.chip_macs(self.protection.workload) for one in self.protection.methods)
        return float(tested * (1 + self.chips) * counts(base, images).macs) + self.chips * fitting


def digest_of(folder: Path) -> str:
    """Return a digest of a trained base model's files."""
    return "-".join(str(file_digest(folder / name)) for name in ("config.json", "model.safetensors"))
