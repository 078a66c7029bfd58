"""Work side by side: on a CPU, several chips run at a time, each on its own thread with its share of the cores.

Two passes over few images keep two cores busier than one pass does. Drawing a chip keeps only one core busy.
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
    """Return the number of threads that keeps the most cores busy if each thread has an equal share of them.

    It is at least half of the largest possible number.
    """
    most = min(cores, MOST)
    return max(range((most + 1) // 2, most + 1), key=lambda count: (count * (cores // count), count))


def side_by_side(function: Callable[[In], Out], items: Iterable[In], at_once: int) -> Generator[Out, None, None]:
    """Yield the function's results in the order of the items. At most ``at_once`` + 1 items are ahead of the caller.

    Args:
        function: Takes one item. It is called on several threads, unless ``at_once`` is 1.
        items: Items to work on. The calling thread takes them, one after another.
        at_once: Number of threads, at most `torch.get_num_threads` (see `Deployed.at_once`).
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
        torch.set_num_threads(cores)  # new threads start with the number that was last set on any thread


def _on_share(cores: int, cast: torch.dtype | None, function: Callable[[In], Out], item: In) -> Out:
    if torch.get_num_threads() != cores:
        torch.set_num_threads(cores)
    with nullcontext() if cast is None else torch.autocast("cpu", cast):  # autocast applies to one thread only
        return function(item)


@lru_cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="neuralfuse")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of these threads
