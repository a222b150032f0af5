"""Threads that stay a little ahead of their reader."""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor


def processors():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(function, items, *, workers, depth):
    """Iterate over function(item) of each of `items`, in their order, computed in `workers` threads up to `depth` items ahead.

    Memory does not grow with the number of items. What `function` raises is raised where its result would have come.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
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
