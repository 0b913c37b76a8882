"""How long does a call take, beside other programs that take turns with it?

Devices work behind the host's back, speeds drift, and the first calls are slow. So:
every program is warmed up first; a repeat is as many calls as fill its time, and ends
when the device has finished the last of them; the programs take turns, one repeat each,
so that drift hits all alike and their ratios are taken round by round.
"""

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Job:
    """What is timed.

    `call(number)` starts call 0, 1, ..., which chooses the input, and returns what
    `wait` blocks on until the device has finished it. Up to `ahead` calls may be
    unfinished when the next one starts: 0 where every call has the device's cores to
    itself.
    """

    call: Callable[[int], Any]
    wait: Callable[[Any], Any]
    ahead: int = 0


@dataclasses.dataclass(frozen=True)
class Rules:
    """Calls before the first clock; turns of every program; seconds of each at least.

    The defaults are what a figure that is told to others needs.
    """

    warmup: int = 20
    repeats: int = 5
    seconds: float = 1.0


class Spread(NamedTuple):
    """Several readings of one thing."""

    median: float
    low: float
    high: float


def spread(values):
    """Median, lowest and highest of a sequence of numbers."""
    return Spread(statistics.median(values), min(values), max(values))


def measure(jobs, rules, now=time.perf_counter):
    """Seconds a call, one reading for each repeat: {name: Job} -> {name: [float]}.

    `now` is the clock.
    """
    runners = {name: _Runner(job, now) for name, job in jobs.items()}
    for runner in runners.values():
        runner.warm_up(rules.warmup)
    readings = {name: [] for name in jobs}
    for _ in range(rules.repeats):
        for name, runner in runners.items():
            readings[name].append(runner.repeat(rules.seconds))
    return readings


def speedups(base, other):
    """How many times as fast as `base`, round by round: lists of seconds -> list."""
    return [b / o for b, o in zip(base, other, strict=True)]


class _Runner:
    """One job: counts its calls, so that inputs rotate through all turns."""

    def __init__(self, job, now):
        self.job, self.now = job, now
        self.started, self.estimate = 0, None

    def warm_up(self, calls):
        """So many calls, the first of which does not count for the estimate."""
        self._lap(1)
        self.estimate = self._lap(max(calls - 1, 1)) / max(calls - 1, 1)

    def repeat(self, seconds):
        """Seconds a call, over as many calls as last `seconds` or longer."""
        calls, passed = 0, 0.0
        while calls == 0 or passed < seconds:
            more = max(1, math.ceil((seconds - passed) / max(self.estimate, 1e-9)))
            passed += self._lap(more)
            calls += more
            self.estimate = passed / calls
        return passed / calls

    def _lap(self, calls):
        """Seconds from the start of the first call to the end of the last."""
        pending, began = collections.deque(), self.now()
        for _ in range(calls):
            pending.append(self.job.call(self.started))
            self.started += 1
            if len(pending) > self.job.ahead:
                self.job.wait(pending.popleft())
        for result in pending:
            self.job.wait(result)
        return self.now() - began
