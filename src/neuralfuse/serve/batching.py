"""Dynamic batching: images of several requests share one pass of the generator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class _Pending:
    """Images in the queue, and the future that gets their transforms."""

    x: Tensor
    done: asyncio.Future[Tensor]


class Batcher:
    """Collect tensors (n, C, H, W) into batches of one dtype, and run a function on each batch in one thread.

    Args:
        run: Function from a batch to a batch of the same length.
        max_batch: Images per batch. A larger request is split, and other requests may run between its parts.
        max_wait: Seconds that a batch waits, at most, for requests that were announced (see `announce`).
        on_batch: Called with the size of each batch, in the transform thread.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        *,
        max_batch: int,
        max_wait: float,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run, self._max_batch, self._max_wait, self._on_batch = run, max_batch, max_wait, on_batch
        self._announced = 0
        self._queue: asyncio.Queue[_Pending] = asyncio.Queue()
        self._batch: list[_Pending] = []  # being collected or transformed
        self._next: list[_Pending] = []  # the first of the next batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transform")
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start collecting, in the running event loop."""
        self._loop = asyncio.get_running_loop().create_task(self._collect())

    async def stop(self) -> None:
        """Stop, and cancel all pending images."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        while not self._queue.empty():
            self._batch.append(self._queue.get_nowait())
        for one in (*self._batch, *self._next):
            one.done.cancel()
        self._thread.shutdown(wait=False)

    @contextlib.contextmanager
    def announce(self) -> Iterator[Callable[[Tensor], Awaitable[Tensor]]]:
        """Announce a request whose images are still being read, so that a batch waits for them.

        Yields the function that transforms the images, to be called once.
        """
        self._announced += 1
        there = False

        def arrived(x: Tensor) -> Awaitable[Tensor]:
            nonlocal there
            there = True
            self._announced -= 1
            return self(x)

        try:
            yield arrived
        finally:
            self._announced -= not there

    async def __call__(self, x: Tensor) -> Tensor:
        """Return the transforms of images; an error of the function reaches every request of the batch."""
        made = []
        for part in torch.split(x, self._max_batch):
            done: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
            self._queue.put_nowait(_Pending(part, done))
            made.append(await done)
        return made[0] if len(made) == 1 else torch.cat(made)

    async def _collect(self) -> None:
        while True:
            if not self._batch:
                self._batch.append(await self._queue.get())
            await self._fill()
            batch = [one for one in self._batch if not one.done.done()]  # without cancelled requests
            self._batch = batch
            if batch:
                await self._transform(batch)
            self._batch, self._next = self._next, []

    async def _fill(self) -> None:
        """Fill the batch; images that do not fit begin the next one."""
        first, size, clock = self._batch[0], len(self._batch[0].x), asyncio.get_running_loop().time
        until = clock() + self._max_wait
        while size < self._max_batch and (self._announced or not self._queue.empty()):
            rest = until - clock()
            try:
                one = self._queue.get_nowait() if rest <= 0 else await asyncio.wait_for(self._queue.get(), rest)
            except (TimeoutError, asyncio.QueueEmpty):
                break
            if size + len(one.x) > self._max_batch or one.x.dtype != first.x.dtype:
                self._next.append(one)
                break
            self._batch.append(one)
            size += len(one.x)

    async def _transform(self, batch: list[_Pending]) -> None:
        try:
            parts = [one.x for one in batch]
            made = await asyncio.get_running_loop().run_in_executor(self._thread, self._run_batch, parts)
        except Exception as error:
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(error)
            return
        for one, part in zip(batch, made, strict=True):
            if not one.done.done():
                one.done.set_result(part)

    def _run_batch(self, images: list[Tensor]) -> list[Tensor]:
        joined = images[0] if len(images) == 1 else torch.cat(images)
        self._on_batch(len(joined))
        return list(torch.split(self._run(joined), [len(one) for one in images]))
