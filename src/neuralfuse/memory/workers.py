"""Work side by side: on a CPU, several chips run at a time, each on its own thread with its share of the cores.

A pass over few images does not keep two cores as busy as two passes do, and drawing a chip keeps one busy only.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import lru_cache
from typing import TypeVar

import torch

MOST = 8  # threads at a time: each holds an image of the weights and the activations of a pass
In = TypeVar("In")
Out = TypeVar("Out")


def threads_at_once(cores: int) -> int:
    """Return how many threads, of nearly as many as may be, keep most cores busy when all have an equal share."""
    most = min(cores, MOST)
    return max(range((most + 1) // 2, most + 1), key=lambda count: (count * (cores // count), count))


def side_by_side(function: Callable[[In], Out], items: Iterable[In], at_once: int) -> Generator[Out, None, None]:
    """Yield the function's results in the items' order; at most one more than there are threads is waiting.

    Args:
        function: Takes one item; called on several threads, unless ``at_once`` is 1.
        items: What to do; taken one after the other, by the calling thread.
        at_once: How many run at a time, at most `torch.get_num_threads` (see `Deployed.at_once`).
    """
    if at_once == 1:
        yield from map(function, items)
        return
    cores, waiting = torch.get_num_threads(), deque[Future[Out]]()
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    pool = _pool(at_once)
    try:
        for item in items:
            waiting.append(pool.submit(_on_share, cores // at_once, cast, function, item))
            if len(waiting) > at_once:
                yield waiting[0].result()
                waiting.popleft()
        while waiting:
            yield waiting[0].result()
            waiting.popleft()
    finally:
        for one in waiting:
            one.cancel()
        wait(waiting)
        torch.set_num_threads(cores)  # threads that torch meets later start with what was set last, anywhere


def _on_share(cores: int, cast: torch.dtype | None, function: Callable[[In], Out], item: In) -> Out:
    if torch.get_num_threads() != cores:
        torch.set_num_threads(cores)
    with nullcontext() if cast is None else torch.autocast("cpu", cast):  # the caller's holds on its own thread only
        return function(item)


@lru_cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="neuralfuse")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process
