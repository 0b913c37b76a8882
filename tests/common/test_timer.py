"""The timer on a simulated device with a simulated clock."""

import types
from itertools import chain, repeat

import pytest

from imagepiece_jax.common import timer
from imagepiece_jax.common.timer import TimedCall, Timing


class Device:
    """A simulated device that runs calls in sequence, each for given seconds."""

    def __init__(self, world, seconds):
        self.world = world
        self.seconds = iter(seconds)
        self.ends = []
        self.unfinished = [0]

    def call(self, number):
        assert number == len(self.ends)
        free = max([self.world.time, *self.ends[-1:]])
        self.ends.append(free + next(self.seconds))
        self.unfinished.append(self.unfinished[-1] + 1)
        return self.ends[-1]

    def wait(self, end):
        self.unfinished.append(self.unfinished[-1] - 1)
        self.world.time = max(self.world.time, end)
        self.world.log.append(self)

    def job(self, ahead=0):
        return TimedCall(self.call, self.wait, ahead)


@pytest.fixture
def world():
    world = types.SimpleNamespace(time=0.0, log=[])
    world.now = lambda: world.time
    return world


@pytest.mark.parametrize("ahead, calls_per_turn", [(0, 4), (2, 6)])
def test_calls_are_counted_and_waited_for(world, ahead, calls_per_turn):
    """The clock is read after a wait, so queued calls run beyond the seconds."""
    device = Device(world, chain([100.0], repeat(0.25)))  # the first call compiles
    rules = Timing(warmup=4, repeats=3, seconds=1.0)
    seconds = timer.time_in_turns({"a": device.job(ahead)}, rules, world.now)
    assert seconds == {"a": [0.25, 0.25, 0.25]}
    assert len(device.ends) == 4 + 3 * calls_per_turn
    assert (device.unfinished[-1], max(device.unfinished)) == (0, ahead + 1)


def test_programs_take_turns_after_untimed_rests(world):
    def rest():
        world.time += 3.0
        world.log.append("rest")

    a = Device(world, repeat(0.5))
    b = Device(world, repeat(0.25))
    rules = Timing(warmup=2, repeats=2, seconds=0.5)
    seconds = timer.time_in_turns({"a": a.job(), "b": b.job()}, rules, world.now, rest)
    assert seconds == {"a": [0.5, 0.5], "b": [0.25, 0.25]}
    turn = ["rest", a, "rest", b, b]
    assert world.log == [a, a, b, b, *turn, *turn]


def test_speedups_are_paired_by_round():
    assert timer.paired_speedups([1.0, 2.0, 4.0], [0.5, 1.0, 2.0]) == [2.0, 2.0, 2.0]
    assert timer.find_spread([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)
    assert Timing() == Timing(warmup=20, repeats=5, seconds=1.0)
