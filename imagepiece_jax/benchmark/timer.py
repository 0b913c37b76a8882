"""Interleaved timing of asynchronous programs.

Devices work asynchronously, speeds drift, and the first calls are slow. So: every
program is warmed up first; a repeat lasts until its time is over and the device has
finished its last call; the programs take turns, one repeat each, so
that drift affects all alike and their ratios are taken round by round.
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from imagepiece_jax.common.checks import check_range

# JAX is imported where it is used: commands read Rules for their --help.
AHEAD = 2  # queued calls, so that a device never waits for its host


@dataclasses.dataclass(frozen=True)
class Rules:
    """How long to measure; the defaults are what a published figure needs."""

    warmup: int = 20  # calls of every program before any is timed
    repeats: int = 5  # turns of every program
    seconds: float = 1.0  # least time of a turn

    def __post_init__(self):
        check_range("warmup", self.warmup, 1, whole=True)
        check_range("repeats", self.repeats, 1, whole=True)
        check_range("seconds", self.seconds, 0)


def calls_ahead() -> int:
    """The number of calls that may be queued on JAX's device when another one starts.

    On a CPU a call starts when the call before it has ended, as in PyTorch.
    """
    import jax

    return 0 if jax.devices()[0].platform == "cpu" else AHEAD


def wait_for_arrays(results):
    """Wait for JAX arrays; NumPy arrays are finished."""
    import jax

    return jax.block_until_ready(results)


@dataclasses.dataclass(frozen=True)
class TimedCall:
    """A program to time.

    `call(number)` starts call 0, 1, ..., which selects the input, and returns what
    `wait` blocks on until the device has finished it. Up to `ahead` calls may be
    unfinished when the next one starts: 0 where every call has the device's cores to
    itself.
    """

    call: Callable[[int], Any]
    wait: Callable[[Any], Any] = wait_for_arrays
    ahead: int = dataclasses.field(default_factory=calls_ahead)


class Spread(NamedTuple):
    """Summary of several readings of one quantity."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of a sequence of numbers."""
    return Spread(statistics.median(values), min(values), max(values))


def measure(
    jobs: dict[Any, TimedCall], rules: Rules, now=time.perf_counter, rest=lambda: None
) -> dict[Any, list[float]]:
    """Time jobs in turns: seconds per call, one reading for each repeat.

    jobs: by name
    now: returns the time in seconds
    rest: function that is called before every turn, to wait for threads of another
        runtime, which keep a core busy for a while after its turn
    Returns the readings by name, in the order of the repeats.
    """
    started = dict.fromkeys(jobs, 0)  # so that inputs rotate across turns

    def run(name, calls, seconds=0.0):
        """Seconds per call, over at least this many calls and seconds."""
        job = jobs[name]
        pending = collections.deque()
        first = started[name]
        began = now()
        while started[name] < first + calls or now() < began + seconds:
            pending.append(job.call(started[name]))
            started[name] += 1
            if len(pending) > job.ahead:
                job.wait(pending.popleft())
        for result in pending:
            job.wait(result)
        return (now() - began) / (started[name] - first)

    for name in jobs:
        run(name, rules.warmup)
    readings = {name: [] for name in jobs}
    for _ in range(rules.repeats):
        for name in jobs:
            rest()
            readings[name].append(run(name, 1, rules.seconds))
    return readings


def speedups(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """Speeds relative to `base`, round by round, of two lists of seconds."""
    return [b / o for b, o in zip(base, other, strict=True)]


def figures(base: Sequence[float], own: Sequence[float], images: int) -> dict:
    """The speed of a program, {name: figure}.

    base, own: seconds of a call of the reference and of the program, one for each round
    images: number of images in a call
    Returns throughput (images a second) and ratio (the speed relative to `base`, round
        by round), both with _min and _max, and the milliseconds of a call, ms.
    """
    seconds = spread(own)
    ratio = spread(speedups(base, own))
    return {
        "throughput": images / seconds.median,
        "throughput_min": images / seconds.high,
        "throughput_max": images / seconds.low,
        "ms": 1e3 * seconds.median,
        "ratio": ratio.median,
        "ratio_min": ratio.low,
        "ratio_max": ratio.high,
    }
