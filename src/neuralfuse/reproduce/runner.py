"""Running a graph of steps: each once and after what it needs; what fails is tried again and reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from neuralfuse.reproduce.engines import Engine
from neuralfuse.reproduce.perform import stands
from neuralfuse.reproduce.place import Place
from neuralfuse.reproduce.steps import Step

_ASK_AGAIN = 2.0  # seconds


def ordered(steps: Iterable[Step]) -> list[Step]:
    """Return steps and all that they need, each once and after what it needs."""
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
    """Where a graph stands; steps by their addresses.

    Attributes:
        steps: All of them, each after what it needs.
        finished: Those that are done, whether now or before.
        running: Those that were handed to the engine.
        failed: Why those failed for good.
        blocked: Those that need a failed one.
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
        """Return the steps that can begin, and set aside those that never can."""
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


def run(
    steps: Sequence[Step],
    place: Place,
    on: Engine,
    *,
    retries: int = 1,
    say: Callable[[str], None],
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run steps and all that they need.

    Args:
        steps: What is wanted.
        place: Where they are kept.
        on: What runs them.
        retries: How often a failed step is tried again.
        say: Told of every finished, damaged or failed step, a line each.
        watch: Called with the progress every half second or so.
    """
    state = Progress({step.address: step for step in ordered(steps)})
    turns = {name: turn for turn, name in enumerate(state.steps)}
    state.finished = finished(state.steps.values(), place, say)
    tries: dict[str, int] = {}
    told: set[str] = set()
    later: dict[str, float] = {}  # steps that another process is at, and when to ask again

    def submit(step: Step, turn: int) -> None:
        state.running.add(step.address)
        on.submit(step, place, turn)

    while True:
        for step in state.ready():
            submit(step, turns[step.address])
        for name in [name for name, moment in later.items() if moment <= time.monotonic()]:
            del later[name]
            submit(state.steps[name], turns[name] + len(turns))  # after all that nobody is at
        watch(state)
        if state.over:
            return state
        outcome = on.next(0.5)
        if outcome is None:
            continue
        step, name = state.steps[outcome.address], outcome.address
        for line in outcome.said:
            if line not in told:  # those who need a damaged step find it so too
                say(line)
                told.add(line)
        if outcome.busy:
            later[name] = time.monotonic() + _ASK_AGAIN
        elif outcome.lost:
            state.finished -= set(outcome.lost)
            state.running.discard(name)
        elif outcome.error is None:
            state.running.discard(name)
            state.finished.add(name)
            say(f"{len(state.finished)} of {len(state.steps)}: {step.title}")
        elif tries.setdefault(name, 0) < retries:
            tries[name] += 1
            say(f"{step.title} failed: {outcome.error} It is tried again.")
            submit(step, turns[name])
        else:
            state.running.discard(name)
            state.failed[name] = outcome.error
            place.store.fail(name, outcome.error)
            say(f"{step.title} failed: {outcome.error}")


def finished(steps: Iterable[Step], place: Place, say: Callable[[str], None] = lambda line: None) -> set[str]:
    """Return the addresses of steps that are done, with all that they need; what is damaged is not, and is said."""
    done: set[str] = set()
    for step in steps:
        said: list[str] = []
        if {other.address for other in step.needs} <= done and stands(step, place, said):
            done.add(step.address)
        for line in said:
            say(line)
            place.store.discard(step.address)
    return done
