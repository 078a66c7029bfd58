"""Running a graph of steps: each once, on the cores here or on a cluster; what fails is tried again and reported."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol

import torch

from neuralfuse.errors import ConfigError, DataError, FileFormatError, MissingExtraError, require
from neuralfuse.reproduce.place import Place
from neuralfuse.reproduce.steps import Step


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


@dataclass(frozen=True)
class Outcome:
    """What became of one try of a step: ``said`` are lines for the user, ``error`` is None where it is finished."""

    address: str
    said: tuple[str, ...] = ()
    error: str | None = None


def perform(step: Step, place: Place, threads: int) -> Outcome:
    """Do one step where it runs, unless another process has done it; never raise.

    What an interrupted run left is gone on from; where it is damaged, the step is done from its beginning.
    """
    torch.set_num_threads(threads)
    store, name, said = place.store, step.address, []
    try:
        with store.locked(name):
            try:
                if store.record(name) is not None:
                    return Outcome(name)
            except FileFormatError as error:
                said.append(f"{error} It is done again.")
                store.discard(name)
            try:
                record = step.perform(place)
            except FileFormatError as error:
                said.append(f"{error} It is done from its beginning.")
                store.discard(name)
                record = step.perform(place)
            run = record.pop("run")
            store.finish(name, step.config(), record, run)
            return Outcome(name, tuple(said))
    except Exception as error:  # whatever it is, no other step may be lost by it
        text = " ".join(str(error).split()) or type(error).__name__
        return Outcome(
            name, tuple(said), text if isinstance(error, DataError | ConfigError) else f"{type(error).__name__}: {text}"
        )


class Engine(Protocol):
    """What runs steps, in any order and number at a time."""

    def submit(self, step: Step, place: Place, turn: int) -> None:
        """Run a step some time, those of earlier turns first."""

    def next(self, seconds: float) -> Outcome | None:
        """Return what became of a step, or None if nothing did for so long."""


@dataclass
class InProcess:
    """Runs steps here, one after the other."""

    threads: int
    _waiting: list[tuple[int, Step, Place]] = field(default_factory=list)

    def submit(self, step: Step, place: Place, turn: int) -> None:
        """See `Engine`."""
        self._waiting.append((turn, step, place))
        self._waiting.sort(key=lambda one: one[0])

    def next(self, seconds: float) -> Outcome | None:
        """See `Engine`."""
        _, step, place = self._waiting.pop(0)
        return perform(step, place, self.threads)


class OnDask:
    """Runs steps on the workers of a Dask cluster; the steps of a worker that dies move to another.

    Args:
        client: A ``distributed.Client``.
        threads: Of torch, in each worker.
    """

    def __init__(self, client: Any, threads: int) -> None:
        self.client, self.threads = client, threads
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[str, str] = {}
        self._tries = 0

    def submit(self, step: Step, place: Place, turn: int) -> None:
        """See `Engine`."""
        self._tries += 1
        key = f"{step.address}-{self._tries}"
        future = self.client.submit(_on_worker, step, place, self.threads, key=key, pure=False, priority=-turn)
        self._running[future.key] = step.address
        future.add_done_callback(self._done.put)

    def next(self, seconds: float) -> Outcome | None:
        """See `Engine`."""
        try:
            future = self._done.get(timeout=seconds)
        except queue.Empty:
            return None
        name = self._running.pop(future.key)
        if future.status == "finished":
            outcome: Outcome = future.result()
            return outcome
        reason = future.exception() if future.status == "error" else f"it was {future.status}"
        return Outcome(name, error=f"no worker finished it: {' '.join(str(reason).split())}")


def _on_worker(step: Step, place: Place, threads: int) -> Outcome:
    """Run a step in a worker process; of several on a machine with several GPUs, each has its own."""
    if place.device == "cuda" and torch.cuda.device_count() > 1:
        from distributed import get_worker  # noqa: PLC0415

        name = str(get_worker().name)
        number = int(name) if name.isdigit() else 0
        place = replace(place, device=f"cuda:{number % torch.cuda.device_count()}")
    return perform(step, place, threads)


@contextmanager
def engine(*, workers: int, threads: int, scheduler: str | None = None) -> Iterator[Engine]:
    """Yield what runs steps: worker processes here, or those of a cluster.

    Args:
        workers: Worker processes; 0 to run in this one.
        threads: Of torch, in each.
        scheduler: Address of a Dask scheduler, whose workers are used instead.
    Raises:
        MissingExtraError: Dask is needed and not installed.
        ConfigError: no scheduler answers.
    """
    if workers == 0 and scheduler is None:
        yield InProcess(threads)
        return
    try:
        dask, distributed = import_module("dask"), import_module("distributed")
    except ImportError as error:
        raise MissingExtraError(
            "worker processes need Dask: pip install 'neuralfuse[reproduce]', or pass --workers 0 to do one step after "
            "the other."
        ) from error
    quiet = {"logging": {"distributed": "critical"}, "distributed.comm.timeouts.connect": "10s"}
    with dask.config.set(quiet):
        if scheduler is not None:
            try:
                client = distributed.Client(scheduler, timeout=10)
            except (OSError, ValueError, TimeoutError) as error:
                raise ConfigError(
                    f"--scheduler must be the address of a running Dask scheduler: {scheduler} does not answer: {error}"
                ) from error
            with client:
                has = len(client.scheduler_info()["workers"])
                require(
                    has > 0, f"the scheduler at {scheduler} must have workers: start some with dask worker {scheduler}"
                )
                yield OnDask(client, threads)
            return
        local = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0,
            silence_logs=logging.CRITICAL,
        )  # fmt: skip
        with local, distributed.Client(local) as client:
            yield OnDask(client, threads)


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
    state.finished = set(finished(state.steps.values(), place, say))
    tries: dict[str, int] = {}
    while True:
        for step in state.ready():
            state.running.add(step.address)
            on.submit(step, place, turns[step.address])
        watch(state)
        if state.over:
            return state
        outcome = on.next(0.5)
        if outcome is None:
            continue
        step = state.steps[outcome.address]
        for line in outcome.said:
            say(line)
        if outcome.error is None:
            state.running.discard(outcome.address)
            state.finished.add(outcome.address)
            say(f"{len(state.finished)} of {len(state.steps)}: {step.title}")
            continue
        tries[outcome.address] = tries.get(outcome.address, 0) + 1
        if tries[outcome.address] <= retries:
            say(f"{step.title} failed: {outcome.error} It is tried again.")
            on.submit(step, place, turns[step.address])
            continue
        state.running.discard(outcome.address)
        state.failed[outcome.address] = outcome.error
        place.store.fail(outcome.address, outcome.error)
        say(f"{step.title} failed: {outcome.error}")


def finished(steps: Iterable[Step], place: Place, say: Callable[[str], None]) -> Iterator[str]:
    """Yield the addresses of steps that are done; what is damaged counts as not done, and is said."""
    for step in steps:
        try:
            if place.store.record(step.address) is not None:
                yield step.address
        except FileFormatError as error:
            say(f"{error} It is done again.")
