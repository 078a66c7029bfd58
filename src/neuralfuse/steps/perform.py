"""Doing one step on a worker: never twice, never on top of damaged files, and never with an exception."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuralfuse.errors import FileFormatError, NeuralFuseError
from neuralfuse.steps.step import Step
from neuralfuse.steps.store import MARKER
from neuralfuse.steps.workspace import Workspace


@dataclass(frozen=True)
class Outcome:
    """The outcome of one try of a step.

    Attributes:
        address: Address of the step.
        said: Lines for the user.
        error: Why the step failed; None if it did not.
        busy: Whether another process is doing the step.
        lost: Addresses of needed steps that are missing or damaged.
        moved: Whether the step's worker was lost and another one continues.
    """

    address: str
    said: tuple[str, ...] = ()
    error: str | None = None
    busy: bool = False
    lost: tuple[str, ...] = ()
    moved: bool = False


def perform(step: Step, workspace: Workspace, threads: int) -> Outcome:
    """Do one step, unless another process has done it or is doing it. Never raise.

    An interrupted step is resumed. If its files are damaged, the step starts again from the beginning.
    """
    torch.set_num_threads(threads)
    name = step.address
    try:
        with workspace.store.locked(name) as held:
            return _perform(step, workspace) if held else Outcome(name, busy=True)
    except Exception as error:  # an error must not stop the other steps
        text = " ".join(str(error).split())
        return Outcome(name, error=text if isinstance(error, NeuralFuseError) else f"{type(error).__name__}: {text}")


def _perform(step: Step, workspace: Workspace) -> Outcome:
    store, name = workspace.store, step.address
    said: list[str] = []
    lost = tuple(other.address for other in step.needs if not is_finished(other, workspace, said))
    if lost:
        return Outcome(name, tuple(said), lost=lost)
    if is_finished(step, workspace, said):
        return Outcome(name)
    if (store.folder(name) / MARKER).exists():  # damaged, or made from other needed steps
        store.discard(name)
    try:
        record = step.perform(workspace)
    except FileFormatError as error:
        said.append(f"{error} The step starts again from the beginning.")
        store.discard(name)
        record = step.perform(workspace)
    run = record.pop("run")
    store.finish(name, step.config(), record, run, [other.address for other in step.needs])
    return Outcome(name, tuple(said))


def is_finished(step: Step, workspace: Workspace, said: list[str]) -> bool:
    """Return whether a step is finished and undamaged. If it is damaged, add a line to ``said``."""
    try:
        return workspace.store.record(step.address) is not None
    except FileFormatError as error:
        said.append(f"{error} The step is done again.")
        return False
