"""Numbered tasks that a pool does ahead, and whose results are taken in their order.

So results do not depend on the pool: threads of this process, which are here, or the
processes of `input.worker_pool`.
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

GROUPS_AHEAD = 2  # groups that are read ahead, besides two that are joined already


class Prefetch:
    """Iterator over groups of results, which a pool prepares ahead.

    close() ends the pool, and so do garbage collection and the end of the interpreter.

    pool: Threads, or `worker_pool.Processes`
    join: function that makes one group of a list of `size` results, in this process
    groups: number of groups
    size: number of results in a group
    Raises what the pool's work raises.
    """

    def __init__(self, pool: Any, join: Callable, *, groups: int, size: int):
        ahead = results_ahead(size, pool.tasks_at_a_time)
        groups_in_order = _joined(pool, join, groups * size, size, ahead)
        with contextlib.ExitStack() as stack:
            if pool.tasks_at_a_time > 0:
                # A thread joins groups, which copies batches, while the device works.
                executor = concurrent.futures.ThreadPoolExecutor(1)
                stack.callback(executor.shutdown)
                groups_in_order = _joined_ahead(executor, groups_in_order)
            stack.callback(pool.close)  # ends first, so that waiting threads end, too
            self._groups = groups_in_order
            self._close = weakref.finalize(self, stack.pop_all().close)

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self._groups)
        except BaseException:
            self.close()
            raise

    def close(self):
        """End the pool."""
        self._groups = iter(())
        self._close()


def results_ahead(size: int, tasks_at_a_time: int) -> int:
    """The most results in memory at once: of a group and of those after it."""
    return size + max(GROUPS_AHEAD * size, tasks_at_a_time, 1)


def _joined(pool, join, count, size, ahead):
    """Yield the joined groups; at most `ahead` tasks are started but not joined."""
    numbers = iter(range(count))
    pending = collections.deque()

    def submit(times):
        pending.extend(map(pool.submit, itertools.islice(numbers, times)))

    submit(ahead)
    for _ in range(count // size):
        joined = join([pending.popleft()() for _ in range(size)])
        submit(size)
        yield joined


def _joined_ahead(executor, groups):
    """Iterator over `groups`, of which a thread makes the next two ahead."""
    upcoming = collections.deque(executor.submit(next, groups, None) for _ in range(2))

    def take():
        upcoming.append(executor.submit(next, groups, None))
        return upcoming.popleft().result()

    return iter(take, None)


class Threads:
    """Does tasks in threads of this process, or without threads when asked."""

    def __init__(self, work, threads):
        self.tasks_at_a_time = threads
        allocate = functools.partial(np.empty, dtype=np.uint8)
        self._work = functools.partial(work, allocate=allocate)
        self._executor = None
        if threads:
            self._executor = concurrent.futures.ThreadPoolExecutor(threads)

    def submit(self, number):
        """Start a task; return a function that waits for its result."""
        if self._executor:
            return self._executor.submit(self._work, number).result
        return functools.partial(self._work, number)

    def close(self):
        if self._executor:
            self._executor.shutdown(cancel_futures=True)
