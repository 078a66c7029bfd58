"""Doing one step where it runs: never twice, never over a damaged one, and never with an exception."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from neuralfuse.errors import FileFormatError, NeuralFuseError
from neuralfuse.steps.step import Step
from neuralfuse.steps.store import MARKER
from neuralfuse.steps.workspace import Workspace


@dataclass(frozen=True)
class Outcome:
    """What became of one try of a step.

    Attributes:
        address: Of the step.
        said: Lines for the user.
        error: Why it failed; None where it did not.
        busy: Whether another process is at work on it.
        lost: What it needs and is not there any more, or damaged.
        moved: Whether its worker was lost, and another goes on with it.
    """

    address: str
    said: tuple[str, ...] = ()
    error: str | None = None
    busy: bool = False
    lost: tuple[str, ...] = ()
    moved: bool = False


def perform(step: Step, workspace: Workspace, threads: int) -> Outcome:
    """Do one step where it runs, unless another process has done it or is at it; never raise.

    What an interrupted run left is gone on from; where it is damaged, the step is done from its beginning.
    """
    torch.set_num_threads(threads)
    name = step.address
    try:
        with workspace.store.locked(name) as held:
            return _perform(step, workspace) if held else Outcome(name, busy=True)
    except Exception as error:  # whatever it is, no other step may be lost by it
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
    if (store.folder(name) / MARKER).exists():  # damaged, or made from something else
        store.discard(name)
    try:
        record = step.perform(workspace)
    except FileFormatError as error:
        said.append(f"{error} It is done from its beginning.")
        store.discard(name)
        record = step.perform(workspace)
    run = record.pop("run")
    store.finish(name, step.config(), record, run, [other.address for other in step.needs])
    return Outcome(name, tuple(said))


def is_finished(step: Step, workspace: Workspace, said: list[str]) -> bool:
    """Return whether a step is finished and whole; if it is damaged, say so."""
    try:
        return workspace.store.record(step.address) is not None
    except FileFormatError as error:
        said.append(f"{error} It is done again.")
        return False
