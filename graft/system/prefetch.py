"""Threads that stay a little ahead of their reader."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


_most: int | None = None


def use_at_most(n: int) -> None:
    """Let `processors` say no more than n from now on: a worker among others has its share of a
    machine."""
    global _most
    _most = n


def processors() -> int:
    """How many processors this process may use."""
    there = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return there if _most is None else min(there, _most)


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, depth: int
) -> Iterator[Result]:
    """Iterate over function(item) of each of `items`, in their order, computed in `workers` threads
    up to `depth` items ahead.

    Memory does not grow with the number of items. What `function` raises is raised where its result
    would have come.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
