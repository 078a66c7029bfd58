"""Images of many requests, transformed together: whoever comes within a moment shares a pass of the generator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class _Waiting:
    """Images of one request, and where their transforms are awaited."""

    x: Tensor
    done: asyncio.Future[Tensor]


class Batcher:
    """Collects tensors (n, C, H, W) of one type and runs a function on many of them at once, on one thread.

    Args:
        run: From a batch to a batch of the same length.
        most: Images at once; a request with more is transformed in parts, others between them.
        wait: Seconds that the first of a batch waits, at most, for requests that are `coming`.
        watch: Told the size of each batch, on that thread.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        *,
        most: int,
        wait: float,
        watch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run, self._most, self._wait, self._watch = run, most, wait, watch
        self._coming = 0
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._batch: list[_Waiting] = []  # being collected or transformed
        self._late: list[_Waiting] = []  # the first of the next
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transform")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to collect, in the running event loop."""
        self._loop = asyncio.get_running_loop().create_task(self._collect())

    async def stop(self) -> None:
        """Stop; what still waits is cancelled."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        while not self._waiting.empty():
            self._batch.append(self._waiting.get_nowait())
        for one in (*self._batch, *self._late):
            one.done.cancel()
        self._thread.shutdown(wait=False)

    @contextlib.contextmanager
    def coming(self) -> Iterator[Callable[[Tensor], Awaitable[Tensor]]]:
        """Have others wait for a request whose images are being read; what this gives transforms them."""
        self._coming += 1
        there = False

        def arrived(x: Tensor) -> Awaitable[Tensor]:
            nonlocal there
            there = True
            self._coming -= 1
            return self(x)

        try:
            yield arrived
        finally:
            self._coming -= not there

    async def __call__(self, x: Tensor) -> Tensor:
        """Return the transforms of images; what the function raises for the batch that they were in, it raises."""
        made = []
        for part in torch.split(x, self._most):
            done: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
            self._waiting.put_nowait(_Waiting(part, done))
            made.append(await done)
        return made[0] if len(made) == 1 else torch.cat(made)

    async def _collect(self) -> None:
        while True:
            if not self._batch:
                self._batch.append(await self._waiting.get())
            await self._fill()
            batch = [one for one in self._batch if not one.done.done()]  # the others are not waited for any more
            self._batch = batch
            if batch:
                await self._transform(batch)
            self._batch, self._late = self._late, []

    async def _fill(self) -> None:
        """Let others join the first; one that cannot any more is late."""
        first, size, clock = self._batch[0], len(self._batch[0].x), asyncio.get_running_loop().time
        until = clock() + self._wait
        while size < self._most and (self._coming or not self._waiting.empty()):
            rest = until - clock()
            try:
                one = self._waiting.get_nowait() if rest <= 0 else await asyncio.wait_for(self._waiting.get(), rest)
            except (TimeoutError, asyncio.QueueEmpty):
                break
            if size + len(one.x) > self._most or one.x.dtype != first.x.dtype:
                self._late.append(one)
                break
            self._batch.append(one)
            size += len(one.x)

    async def _transform(self, batch: list[_Waiting]) -> None:
        try:
            parts = [one.x for one in batch]
            made = await asyncio.get_running_loop().run_in_executor(self._thread, self._together, parts)
        except Exception as error:
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(error)
            return
        for one, part in zip(batch, made, strict=True):
            if not one.done.done():
                one.done.set_result(part)

    def _together(self, images: list[Tensor]) -> list[Tensor]:
        joined = images[0] if len(images) == 1 else torch.cat(images)
        self._watch(len(joined))
        return list(torch.split(self._run(joined), [len(one) for one in images]))
