"""Stopping a run at Ctrl-C, SIGTERM or SIGUSR1, after a step."""

import contextlib
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from imagepiece_jax.common import signals


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], int]]:
    """Yield a function from a step to the signal that stops the run after it, or 0.

    All processes call it after every step, and stop after the same step.
    """
    if jax.process_count() == 1:
        with signals.noted_signals() as noted:
            yield lambda step: noted[0] if noted else 0
        return

    # JAX handles SIGTERM itself, and tells the other processes.
    def pass_on(signum, frame):
        signal.raise_signal(signal.SIGTERM)

    others = [s for s in signals.STOP_SIGNALS if s != signal.SIGTERM]
    with signals.handled_signals(pass_on, others):
        reaches_stop = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reaches_stop(step) else 0
