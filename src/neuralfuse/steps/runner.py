"""Running a graph of steps: each step runs once, after the steps that it needs. Failed steps are retried."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from neuralfuse.steps.engines import Engine
from neuralfuse.steps.perform import Outcome, is_finished
from neuralfuse.steps.step import Step
from neuralfuse.steps.workspace import Workspace

_ASK_AGAIN = 2.0  # seconds until a step that another process is doing is submitted again


def ordered(steps: Iterable[Step]) -> list[Step]:
    """Return steps and all that they need in topological order, without duplicates."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.address not in found:
            for other in step.needs:
                visit(other)
            found.setdefault(step.address, step)

    for step in steps:
        visit(step)
    return list(found.values())


@dataclass
class Progress:
    """The progress of a graph of steps. Steps are named by their addresses.

    Attributes:
        steps: All steps in topological order, by address.
        finished: Steps that are done, now or in an earlier run.
        running: Steps that were submitted to the engine.
        failed: Steps that failed for good, with the reason.
        blocked: Steps that need a failed step.
    """

    steps: dict[str, Step]
    finished: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.finished) + len(self.failed) + len(self.blocked) == len(self.steps)

    def ready(self) -> list[Step]:
        """Return the steps that can begin. Mark steps that need a failed one as blocked."""
        found = []
        for name, step in self.steps.items():
            if name in self.finished | self.running | self.failed.keys() | self.blocked:
                continue
            needs = {other.address for other in step.needs}
            if needs & (self.failed.keys() | self.blocked):
                self.blocked.add(name)
            elif needs <= self.finished:
                found.append(step)
        return found


def run_steps(
    steps: Sequence[Step],
    workspace: Workspace,
    on: Engine,
    *,
    retries: int = 1,
    say: Callable[[str], None],
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run steps and all that they need.

    Args:
        steps: The steps.
        workspace: The workspace that holds the steps.
        on: The engine that runs the steps.
        retries: Number of retries of a failed step.
        say: Called with one line of text per finished, damaged or failed step.
        watch: Called with the progress about every half second.
    """
    now = _Schedule(Progress({step.address: step for step in ordered(steps)}), workspace, on, retries, say)
    now.state.finished = finished(now.state.steps.values(), workspace, now.tell)
    while True:
        now.hand_out()
        watch(now.state)
        if now.state.over:
            return now.state
        outcome = on.next(0.5)
        if outcome is not None:
            now.take(outcome)


@dataclass
class _Schedule:
    """The state of `run_steps`.

    Attributes:
        tries: Number of retries so far, by address.
        shown: Lines already shown.
        lost: Addresses of finished steps that turned out to be missing or damaged.
        later: When to submit a step again that another process is doing, by address.
    """

    state: Progress
    workspace: Workspace
    on: Engine
    retries: int
    say: Callable[[str], None]
    tries: Counter[str] = field(default_factory=Counter)
    shown: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    later: dict[str, float] = field(default_factory=dict)

    def hand_out(self) -> None:
        """Submit all steps that can begin, in order. Steps that another process was doing come after all others."""
        turns = {name: turn for turn, name in enumerate(self.state.steps)}
        for step in self.state.ready():
            self.state.running.add(step.address)
            self.on.submit(step, self.workspace, turns[step.address])
        for name in [name for name, moment in self.later.items() if moment <= time.monotonic()]:
            del self.later[name]
            self.on.submit(self.state.steps[name], self.workspace, turns[name] + len(turns))

    def tell(self, line: str) -> None:
        """Say a line once. Several steps may report the same damaged step."""
        if line not in self.shown:
            self.say(line)
            self.shown.add(line)

    def take(self, outcome: Outcome) -> None:
        """Update the progress with the outcome of a step."""
        state, name, step = self.state, outcome.address, self.state.steps[outcome.address]
        for line in outcome.said:
            self.tell(line)
        if outcome.busy:
            self.later[name] = time.monotonic() + _ASK_AGAIN
        if outcome.busy or outcome.moved:
            return
        state.running.discard(name)
        if outcome.lost:
            self.lost |= set(outcome.lost)
            state.finished -= self.lost
        elif outcome.error is None:
            self._finish(step)
        elif self.tries[name] < self.retries:
            self.tries[name] += 1  # the step is ready again, so `hand_out` submits it again
            self.say(f"{step.title} failed and is retried: {outcome.error}")
        else:
            state.failed[name] = outcome.error
            self.workspace.store.fail(name, outcome.error)
            self.say(f"{step.title} failed: {outcome.error}")

    def _finish(self, step: Step) -> None:
        state, name = self.state, step.address
        state.finished.add(name)
        if name in self.lost:  # steps made from the old result may not fit the new one
            self.lost.discard(name)
            state.finished &= finished(state.steps.values(), self.workspace)
        self.say(f"{len(state.finished)} of {len(state.steps)}: {step.title}")


def finished(steps: Iterable[Step], workspace: Workspace, say: Callable[[str], None] = lambda line: None) -> set[str]:
    """Return the addresses of finished steps whose needed steps are finished too. Report damaged steps by ``say``."""
    done: set[str] = set()
    for step in steps:
        said: list[str] = []
        if {other.address for other in step.needs} <= done and is_finished(step, workspace, said):
            done.add(step.address)
        for line in said:
            say(line)
    return done
