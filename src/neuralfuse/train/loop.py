"""The training loop: batches, learning-rate schedule, validation, early stopping, checkpoints, exact resume.

All randomness of a step is derived from the step's number. A checkpoint therefore needs no generator state: it holds
the parameters, the optimizer state and the step.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuralfuse.config import LoopConfig
from neuralfuse.data import Split
from neuralfuse.errors import DivergenceError, FileFormatError, require
from neuralfuse.files import check_writable, read_tensors, write_tensors
from neuralfuse.seeds import derive, generator
from neuralfuse.train.average import Average
from neuralfuse.train.listeners import Listener
from neuralfuse.train.ranks import ALONE, Ranks

CHECKPOINT = "checkpoint.safetensors"


class Task(ABC):
    """The parts that differ between trainings: the module, its gradient and its validation.

    Attributes:
        module: The module to train.
        ranks: The processes that do the same steps. Only the first one writes checkpoints.
    """

    module: nn.Module
    ranks: Ranks = ALONE

    @abstractmethod
    def backward(self, images: Tensor, labels: Tensor, step: int) -> dict[str, float]:
        """Add the gradient of one mini-batch to the module's parameters; return the losses by name."""

    def stepped(self) -> None:  # noqa: B027
        """Run after each step of the optimizer. By default, do nothing."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Return metrics in percent. The state with the highest ``score`` is kept."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the configuration that must be equal for a checkpoint to be resumed."""


class Batches:
    """The mini-batches of a split, in a new seeded order per epoch. An incomplete last mini-batch is dropped."""

    def __init__(self, split: Split, size: int, seed: int) -> None:
        self.split, self.size, self.seed = split, min(size, len(split)), seed
        self.steps = len(split) // self.size
        self._order = lru_cache(maxsize=1)(self._make_order)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return (images, labels) of a step, counted over all epochs."""
        epoch, place = divmod(step, self.steps)
        rows = self._order(epoch)[place * self.size : (place + 1) * self.size]
        return self.split.images[rows], self.split.labels[rows]

    def _make_order(self, epoch: int) -> Tensor:
        order = torch.randperm(len(self.split), generator=generator(self.seed, "order", epoch))
        return order.to(self.split.images.device)


@dataclass
class State:
    """The progress of a training run.

    Attributes:
        step: Number of steps done.
        best_score: Highest validation score.
        best_step: The step with that score.
        stale: Number of validations since then.
        done: Whether training stopped early.
        history: The metrics of each validation, with its step.
        best: The module's state at the best step.
    """

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    stale: int = 0
    done: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict, repr=False)


def fit(
    task: Task,
    split: Split,
    config: LoopConfig,
    *,
    out: Path | None,
    resume: bool,
    listeners: Sequence[Listener],
    checkpoint_seconds: float = 60.0,
) -> State:
    """Train a task's module. It ends with the best validated weights.

    Args:
        task: The task.
        split: Training images.
        config: The training configuration.
        out: Folder for checkpoints; None for none.
        resume: Whether to resume from the checkpoint in ``out``, if there is one.
        listeners: Objects that are notified of steps and validations.
        checkpoint_seconds: Minimum time between two checkpoints that do not follow a validation.
    Raises:
        DivergenceError: a loss became NaN or infinite.
        FileFormatError: the checkpoint belongs to another run.
        OutputError: ``out`` cannot be written.
    """
    batches = Batches(split, config.batch, config.seed)
    total = config.epochs * batches.steps
    total = min(total, config.max_steps or total)
    every = config.validate_every or batches.steps
    optimizer, average = _optimizer(task.module, config), Average(task.module, config.average)
    state = State()
    try:
        ranks = task.ranks
        if out is not None:
            if ranks.first:
                check_writable(out)
            if resume and (out / CHECKPOINT).exists():
                state = _load(out / CHECKPOINT, task, optimizer, average)
        ranks.check_equal(state.step, split.images.device, "checkpoint: --out must be a folder that all of them share")
        saved = time.monotonic()
        while state.step < total and not state.done:
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(state.step, total)
            optimizer.zero_grad(set_to_none=True)
            losses = _backward(task, batches, state.step, config.seed)
            optimizer.step()
            task.stepped()
            state.step += 1
            average.update(task.module, state.step)
            for listener in listeners:
                listener.stepped(state.step, total, losses)
            validate = state.step % every == 0 or state.step == total
            if validate:
                ranks.align(_everything(task, optimizer, average))
                with average.in_place_of(task.module):
                    _validate(task, state, config, listeners)
            late = time.monotonic() - saved >= checkpoint_seconds
            if out is not None and ranks.first and (validate or late):
                _save(out / CHECKPOINT, task, optimizer, average, state)
                saved = time.monotonic()
    finally:
        for listener in listeners:
            listener.close()
    task.module.load_state_dict(state.best)
    return state


def _optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    require(len(parameters) > 0, "a module must have parameters to be trained: it has none.")
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, betas=(0.5, 0.999))
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=0.9, nesterov=config.nesterov, weight_decay=config.weight_decay
    )


def _everything(task: Task, optimizer: torch.optim.Optimizer, average: Average) -> list[Tensor]:
    """Return all tensors that training changes: weights, buffers, their average, and the optimizer's state."""
    slots = (slot for slots in optimizer.state.values() for slot in slots.values())
    tensors = [*task.module.state_dict().values(), *average.tensors.values(), *slots]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.dim() > 0]


def _backward(task: Task, batches: Batches, step: int, seed: int) -> dict[str, float]:
    images, labels = batches.at(step)
    own = derive(seed, "step", step) >> 1
    cuda = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # layers such as dropout draw from the global generator
        torch.default_generator.manual_seed(own)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        losses = task.backward(images, labels, step)
    for name, value in losses.items():
        if not math.isfinite(value):
            raise DivergenceError(
                f"the training loss must be finite: {name} became {value} at step {step + 1}. Lower --lr."
            )
    return losses


def _validate(task: Task, state: State, config: LoopConfig, listeners: Sequence[Listener]) -> None:
    metrics = task.validate()
    state.history.append({"step": state.step, **metrics})
    if metrics["score"] > state.best_score:
        state.best_score, state.best_step, state.stale = metrics["score"], state.step, 0
        state.best = {name: tensor.detach().clone() for name, tensor in task.module.state_dict().items()}
    else:
        state.stale += 1
        state.done = 0 < config.patience <= state.stale
    for listener in listeners:
        listener.validated(state.step, metrics)


def _save(path: Path, task: Task, optimizer: torch.optim.Optimizer, average: Average, state: State) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in task.module.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
    progress = {
        "step": state.step,
        # JSON has no infinity, which is the best score before the first validation.
        "best_score": None if state.best_score == -math.inf else state.best_score,
        "best_step": state.best_step,
        "stale": state.stale,
        "done": state.done,
        "history": state.history,
    }
    write_tensors(path, tensors, {"progress": json.dumps(progress), "identity": _canonical(task)})


def _load(path: Path, task: Task, optimizer: torch.optim.Optimizer, average: Average) -> State:
    tensors, metadata = read_tensors(path)
    if metadata.get("identity") != _canonical(task):
        raise FileFormatError(
            f"{path} must be a checkpoint of the same run to be resumed: its configuration, data or base model "
            f"differs{_difference(metadata.get('identity'), task)}. Pass the same options, or another --out."
        )
    progress = json.loads(metadata["progress"])
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "average": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    task.module.load_state_dict(parts["module"])
    for name, tensor in parts["average"].items():
        average.tensors[name].copy_(tensor)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    score = progress.pop("best_score")
    return State(best_score=-math.inf if score is None else score, best=parts["best"], **progress)


def _canonical(task: Task) -> str:
    shapes = {name: list(tensor.shape) for name, tensor in task.module.state_dict().items()}
    return json.dumps({**task.identity(), "shapes": shapes}, sort_keys=True)


def _difference(text: str | None, task: Task) -> str:
    """Describe the first entry that differs between a checkpoint's identity and the task's."""
    theirs = json.loads(text) if text else {}
    for key, value in json.loads(_canonical(task)).items():
        if theirs.get(key) != value:
            nested = isinstance(value, dict | list)
            return f" in {key!r}" if nested else f" in {key!r} ({theirs.get(key)!r} there, {value!r} here)"
    return ""
