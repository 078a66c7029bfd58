"""Engines that run steps: in this process, in local worker processes, or on a Dask cluster."""

from __future__ import annotations

import ctypes
import logging
import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol

import torch

from neuralfuse.errors import ConfigError, MissingExtraError, UnfinishedError, require
from neuralfuse.steps.perform import Outcome, perform
from neuralfuse.steps.step import Step
from neuralfuse.steps.workspace import ANY_DEVICE, Workspace

_LOOK_AGAIN = 1.0  # seconds between two checks for lost workers
PATIENCE = 10.0
"""Seconds for a scheduler to answer."""


class Engine(Protocol):
    """An engine runs submitted steps, in any order and any number at a time."""

    def submit(self, step: Step, workspace: Workspace, turn: int) -> None:
        """Queue a step. Steps with a lower ``turn`` run first."""

    def next(self, seconds: float) -> Outcome | None:
        """Return the outcome of a step, or None if no step ends within this many seconds."""


@dataclass
class InProcess:
    """An engine that runs steps in this process, one after the other."""

    threads: int
    _waiting: list[tuple[int, Step, Workspace]] = field(default_factory=list)

    def submit(self, step: Step, workspace: Workspace, turn: int) -> None:
        """See `Engine`."""
        self._waiting.append((turn, step, workspace))
        self._waiting.sort(key=lambda one: one[0])

    def next(self, seconds: float) -> Outcome | None:
        """See `Engine`."""
        if not self._waiting:
            time.sleep(seconds)
            return None
        _, step, workspace = self._waiting.pop(0)
        return perform(step, workspace, self.threads)


class OnDask:
    """An engine that runs steps on the workers of a Dask cluster. Steps of a lost worker move to another.

    Args:
        client: A ``distributed.Client``.
        threads: Number of torch threads per worker.
    """

    def __init__(self, client: Any, threads: int) -> None:
        self.client, self.threads = client, threads
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[str, Step] = {}
        self._tries = 0
        self._at_work: dict[str, str] = {}  # the key of the step that each worker runs, at the last look
        self._looked = 0.0
        self._moved: list[Outcome] = []

    def submit(self, step: Step, workspace: Workspace, turn: int) -> None:
        """See `Engine`."""
        self._tries += 1
        key = f"{step.address}-{self._tries}"
        future = self.client.submit(_on_worker, step, workspace, self.threads, key=key, pure=False, priority=-turn)
        self._running[future.key] = step
        future.add_done_callback(self._done.put)

    def next(self, seconds: float) -> Outcome | None:
        """See `Engine`."""
        try:
            future = self._done.get(timeout=seconds)
        except queue.Empty:
            future = None
        if self.client.status != "running" or (future is not None and future.status in ("cancelled", "lost")):
            raise UnfinishedError(
                "the Dask scheduler must run until all steps are done: it has stopped. Run the same command again to "
                "continue from the finished steps."
            )
        if future is None:
            return self._lost_worker()
        step = self._running.pop(future.key)
        if future.status == "finished":
            outcome: Outcome = future.result()
            return outcome
        return Outcome(step.address, error=f"no worker finished it: {' '.join(str(future.exception()).split())}")

    def _lost_worker(self) -> Outcome | None:
        """Check every second which workers are left; return the outcome of a step whose worker was lost."""
        if not self._moved and time.monotonic() - self._looked > _LOOK_AGAIN:
            self._looked = time.monotonic()
            before, now = self._at_work, self._processing()
            self._at_work = {worker: keys[0] for worker, keys in now.items() if keys}
            for worker, key in before.items():
                if worker not in now and key in self._running:
                    step = self._running[key]
                    line = f"worker {worker} was lost; another one continues its step: {step.title}"
                    self._moved.append(Outcome(step.address, said=(line,), moved=True))
        return self._moved.pop() if self._moved else None

    def _processing(self) -> dict[str, Sequence[str]]:
        """Return the keys of the steps that each worker runs."""
        try:
            return dict(self.client.processing())
        except (OSError, RuntimeError, TimeoutError):  # `next` checks the client's status
            return dict.fromkeys(self._at_work, ())


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor of this process. Other C libraries are left as they are.

    Dask makes its workers return freed memory at once (``MALLOC_TRIM_THRESHOLD_``). Every tensor then needs new
    pages, and a training step takes up to twice as long.
    """
    trim_threshold, mmap_max = -1, -4
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def _on_worker(step: Step, workspace: Workspace, threads: int) -> Outcome:
    """Run a step in a worker process, on a GPU if the worker sees one and may use it. Workers share GPUs evenly."""
    keep_freed_memory()
    gpus = torch.cuda.device_count() if workspace.device in (ANY_DEVICE, "cuda") else 0
    if gpus:
        number = str(import_module("distributed").get_worker().name)
        workspace = replace(workspace, device=f"cuda:{int(number) % gpus if number.isdigit() else 0}")
    elif workspace.device == ANY_DEVICE:
        workspace = replace(workspace, device="cpu")
    return perform(step, workspace, threads)


@contextmanager
def engine(*, workers: int, threads: int, scheduler: str | None = None) -> Iterator[Engine]:
    """Yield an engine: this process, local worker processes, or the workers of a cluster.

    Args:
        workers: Number of local worker processes; 0 runs steps in this process.
        threads: Number of torch threads per worker.
        scheduler: Address of a Dask scheduler whose workers run the steps instead; None for none.
    Raises:
        MissingExtraError: Dask is needed and not installed.
        ConfigError: the scheduler does not answer or has no workers.
    """
    if workers == 0 and scheduler is None:
        yield InProcess(threads)
        return
    try:
        dask, distributed = import_module("dask"), import_module("distributed")
    except ImportError as error:
        raise MissingExtraError(
            "worker processes need Dask: pip install 'neuralfuse[reproduce]', or pass --workers 0 to run one step "
            "after the other."
        ) from error
    quiet = {"logging": {"distributed": "critical"}, "distributed.comm.timeouts.connect": f"{PATIENCE}s"}
    with dask.config.set(quiet):
        if scheduler is not None:
            try:
                client = distributed.Client(scheduler, timeout=PATIENCE)
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
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", memory_limit=0,
            silence_logs=logging.CRITICAL,
        )  # fmt: skip
        with local, distributed.Client(local) as client:
            yield OnDask(client, threads)
