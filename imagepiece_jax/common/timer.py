"""Interleaved timing of asynchronous programs.

Programs take turns, one repeat per round, and ratios are taken round by round. A repeat
ends once its time is over and the device has finished its last call.
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from imagepiece_jax.common.checks import check_range

# JAX is imported where it is used: commands read Timing for their --help.
MAX_QUEUED_CALLS = 2  # queued calls, so that a device never waits for its host


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long to measure. The defaults suit published figures."""

    warmup: int = 20  # calls of every program before the timed calls
    repeats: int = 5  # turns of every program
    seconds: float = 1.0  # least duration of a turn

    def __post_init__(self) -> None:
        check_range("warmup", self.warmup, 1, whole=True)
        check_range("repeats", self.repeats, 1, whole=True)
        check_range("seconds", self.seconds, 0)


def calls_ahead() -> int:
    """Number of queued calls allowed on JAX's device when a call starts."""
    import jax

    # On a CPU a call starts after the call before it has ended, as in PyTorch.
    return 0 if jax.devices()[0].platform == "cpu" else MAX_QUEUED_CALLS


def wait_for_arrays(results: Any) -> None:
    """Wait for JAX arrays. NumPy arrays are finished."""
    import jax

    return jax.block_until_ready(results)


@dataclasses.dataclass(frozen=True)
class TimedCall:
    """A program to time.

    call: function (number) that starts call 0, 1, .. on the input chosen by the number
    wait: function that blocks until the device has finished a result of `call`
    ahead: unfinished calls allowed when a call starts. 0: every call has the device's
        cores to itself.
    """

    call: Callable[[int], Any]
    wait: Callable[[Any], Any] = wait_for_arrays
    ahead: int = dataclasses.field(default_factory=calls_ahead)


class Spread(NamedTuple):
    """Summary of a quantity's readings."""

    median: float
    low: float
    high: float


def find_spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum of a sequence."""
    return Spread(statistics.median(values), min(values), max(values))


def time_in_turns(
    jobs: dict[Any, TimedCall],
    rules: Timing,
    now: Callable[[], float] = time.perf_counter,
    pause: Callable[[], object] = lambda: None,
) -> dict[Any, list[float]]:
    """Time jobs in turns: {name: seconds per call, one reading per repeat}.

    now: function that returns the time in seconds
    pause: function called before every turn. It waits for another runtime's threads,
        which keep a core busy for a while after their turn.
    """
    # Inputs rotate across turns, by the number of started calls.
    started = dict.fromkeys(jobs, 0)

    def run(name: Any, calls: float, seconds: float = 0.0) -> float:
        """Seconds per call, over at least `calls` calls and `seconds`."""
        job = jobs[name]
        pending = collections.deque()
        first = started[name]
        began = now()
        while started[name] < first + calls or now() < began + seconds:
            pending.append(job.call(started[name]))
            started[name] += 1
            if len(pending) > job.ahead:  # wait for the oldest call
                job.wait(pending.popleft())
        for result in pending:
            job.wait(result)
        return (now() - began) / (started[name] - first)

    # First calls are slow, so they are not timed.
    for name in jobs:
        run(name, rules.warmup)
    readings = {name: [] for name in jobs}
    # Speeds drift. In turns, drift affects all programs alike.
    for _ in range(rules.repeats):
        for name in jobs:
            pause()
            readings[name].append(run(name, 1, rules.seconds))
    return readings


def paired_speedups(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """Speeds of `other` relative to `base`, round by round, from seconds."""
    return [b / o for b, o in zip(base, other, strict=True)]


def speed_metrics(base: Sequence[float], own: Sequence[float], images: int) -> dict:
    """A program's speed figures, by name.

    base, own: seconds per call of the reference and of the program, round by round
    images: images per call
    Returns throughput (images per second) and ratio (speed relative to `base`, taken
        round by round), both with _min and _max, and ms (milliseconds per call).
    """
    seconds = find_spread(own)
    ratio = find_spread(paired_speedups(base, own))
    return {
        "throughput": images / seconds.median,
        "throughput_min": images / seconds.high,
        "throughput_max": images / seconds.low,
        "ms": 1e3 * seconds.median,
        "ratio": ratio.median,
        "ratio_min": ratio.low,
        "ratio_max": ratio.high,
    }
