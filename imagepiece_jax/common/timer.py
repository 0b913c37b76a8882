"""Interleaved timing of asynchronous programs.

Programs take turns, one repeat per round, and ratios are taken round by round. A repeat
ends once its time is over and the device has finished its last call.
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from imagepiece_jax.common.checks import check_options, option

# JAX is imported where it is used: commands read Timing for their --help.
MAX_QUEUED_CALLS = 2  # queued calls, so that a device never waits for its host


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long to measure. The defaults suit published figures."""

    warmup: int = option(20, least=1)  # calls of every program before the timed calls
    repeats: int = option(5, least=1)  # turns of every program
    seconds: float = option(1.0, least=0)  # least duration of a turn

    def __post_init__(self) -> None:
        check_options(self)


def calls_ahead() -> int:
    """Number of queued calls allowed on JAX's device when a call starts."""
    import jax

    # On a CPU a call starts after the call before it has ended, as in PyTorch.
    return 0 if jax.devices()[0].platform == "cpu" else MAX_QUEUED_CALLS


def wait_for_arrays(results: Any) -> None:
    """Wait for JAX arrays. NumPy arrays are finished."""
    import jax

    jax.block_until_ready(results)


@dataclasses.dataclass(frozen=True)
class TimedCall:
    """A program to time.

    call: function (number) that starts call 0, 1, .. on the input chosen by the number
    wait: function that blocks until the device has finished a result of `call`
    ahead: unfinished calls allowed when a call starts
    """

    call: Callable[[int], Any]
    wait: Callable[[Any], Any] = wait_for_arrays
    ahead: int = dataclasses.field(default_factory=calls_ahead)


class Spread(NamedTuple):
    """Summary of a metric's readings."""

    median: float
    low: float
    high: float


def find_spread(readings: Sequence[float]) -> Spread:
    """Median, minimum and maximum of readings."""
    return Spread(statistics.median(readings), min(readings), max(readings))


def time_in_turns(
    timed_calls: Mapping[Any, TimedCall],
    timing: Timing,
    read_clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[], object] = lambda: None,
) -> dict[Any, list[float]]:
    """Time programs in turns: {name: seconds per call, one reading per repeat}.

    pause: function called before every turn. It waits for another runtime's threads,
        which keep a core busy for a while after their turn.
    """
    # Inputs rotate across turns, by the number of started calls.
    num_started = dict.fromkeys(timed_calls, 0)

    def time_turn(name, min_calls, min_seconds=0.0):
        """Time one program's turn; return its seconds per call."""
        timed_call = timed_calls[name]
        pending_results = collections.deque()
        first_number = num_started[name]
        end_number = first_number + min_calls
        start_time = read_clock()
        end_time = start_time + min_seconds
        while num_started[name] < end_number or read_clock() < end_time:
            pending_results.append(timed_call.call(num_started[name]))
            num_started[name] += 1
            if len(pending_results) > timed_call.ahead:  # wait for the oldest call
                timed_call.wait(pending_results.popleft())
        for result in pending_results:
            timed_call.wait(result)
        return (read_clock() - start_time) / (num_started[name] - first_number)

    # First calls are slow, so they are not timed.
    for name in timed_calls:
        time_turn(name, timing.warmup)
    readings = {name: [] for name in timed_calls}
    # Speeds drift. In turns, drift affects all programs alike.
    for _ in range(timing.repeats):
        for name in timed_calls:
            pause()
            readings[name].append(time_turn(name, 1, timing.seconds))
    return readings


def paired_speedups(
    base_seconds: Sequence[float], own_seconds: Sequence[float]
) -> list[float]:
    """Speeds relative to the base, round by round, from seconds per call."""
    return [base / own for base, own in zip(base_seconds, own_seconds, strict=True)]


def speed_metrics(
    base_seconds: Sequence[float], own_seconds: Sequence[float], num_images: int
) -> dict[str, float]:
    """Throughput in images per second, ms per call, and ratio of speeds to the base.

    base_seconds, own_seconds: per call, by round
    num_images: images per call
    """
    seconds = find_spread(own_seconds)
    ratio = find_spread(paired_speedups(base_seconds, own_seconds))
    return {
        "throughput": num_images / seconds.median,
        "throughput_min": num_images / seconds.high,
        "throughput_max": num_images / seconds.low,
        "ms": 1e3 * seconds.median,
        "ratio": ratio.median,
        "ratio_min": ratio.low,
        "ratio_max": ratio.high,
    }
