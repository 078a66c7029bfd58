"""Images of many requests, transformed together: whoever comes within a moment shares a pass of the generator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
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
        most: Images at once; a request with more has a batch of its own.
        wait: Seconds that the first of a batch waits for others.
        watch: Told the size of each batch.
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
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._left: _Waiting | None = None  # came too late for the last batch
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
        for one in [] if self._left is None else [self._left]:
            one.done.cancel()
        while not self._waiting.empty():
            self._waiting.get_nowait().done.cancel()
        self._thread.shutdown(wait=False)

    async def __call__(self, x: Tensor) -> Tensor:
        """Return the transforms of images; what the function raises for the batch that they were in, it raises."""
        done: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(_Waiting(x, done))
        return await done

    async def _collect(self) -> None:
        while True:
            first = self._left or await self._waiting.get()
            self._left = None
            batch, size = [first], len(first.x)
            until = asyncio.get_running_loop().time() + self._wait
            while size < self._most:
                rest = until - asyncio.get_running_loop().time()
                try:
                    one = self._waiting.get_nowait() if rest <= 0 else await asyncio.wait_for(self._waiting.get(), rest)
                except (TimeoutError, asyncio.QueueEmpty):
                    break
                if size + len(one.x) > self._most or one.x.dtype != first.x.dtype:
                    self._left = one
                    break
                batch.append(one)
                size += len(one.x)
            batch = [one for one in batch if not one.done.done()]  # the others are not waited for any more
            if batch:
                await self._transform(batch)

    async def _transform(self, batch: list[_Waiting]) -> None:
        self._watch(sum(len(one.x) for one in batch))
        joined = batch[0].x if len(batch) == 1 else torch.cat([one.x for one in batch])
        try:
            made = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, joined)
        except asyncio.CancelledError:
            for one in batch:
                one.done.cancel()
            raise
        except Exception as error:
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(error)
            return
        for one, part in zip(batch, torch.split(made, [len(one.x) for one in batch]), strict=True):
            if not one.done.done():
                one.done.set_result(part)
