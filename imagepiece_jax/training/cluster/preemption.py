"""Stopping at a signal: Ctrl-C, a lost terminal, or a scheduler's before a kill.

A run stops between two steps, when its state can be saved. `keeper` decides what to
save after a step, and `errors.Stopped` has the exit status.
"""

import contextlib
import signal
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Self, TypeVar

from imagepiece_jax.common import signals

Item = TypeVar("Item")


class Interrupted(Exception):
    """Work stopped by a signal, with nothing changed."""


class StopRequest(contextlib.ExitStack):
    """Context in which `signals.END_SIGNALS` request a stop.

    The main thread calls `stop_signal` often, and saves when it returns a signal. Until
    then a Ctrl-C after the first signal ends the process at once.

    agree: function from this process's signal, or 0, to the signal of all processes;
        see `parallel.make_max_over_processes`
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        super().__init__()
        self.ignores_signals = False  # from now on
        self._agree = agree
        self._signum = 0  # the first signal in this process; 0: none
        self._agreed_signum = 0  # the signal all processes have agreed on; 0: none

    def __enter__(self) -> Self:
        heeded_signals = signals.heeded_signals()
        self.enter_context(signals.replaced_handlers(self._note_signal, heeded_signals))
        return self

    @contextlib.contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """Context in which a signal ends the process at once, saving nothing."""
        # For compilation, which may take minutes and runs no Python handler.
        with signals.ending_at_once():
            if self._signum:  # arrived before
                signal.raise_signal(self._signum)
            yield

    def stop_signal(self) -> int:
        """Return the signal that requested a stop, or 0; later signals are ignored.

        All processes of a run call this equally often, and get the same result.
        """
        self._agreed_signum = self._agreed_signum or self._agree(self._signum)
        self.ignores_signals = self.ignores_signals or self._agreed_signum > 0
        return self._agreed_signum

    def until_requested(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; raise Interrupted once a stop is requested."""
        for item in items:
            if self.stop_signal():
                raise Interrupted
            yield item

    def _note_signal(self, signum: int, frame: types.FrameType | None) -> None:
        # Ctrl-C after the first signal: the user does not want to wait for the stop.
        if self._signum and signum == signal.SIGINT and not self.ignores_signals:
            with signals.ending_at_once():
                signal.raise_signal(signum)
        self._signum = self._signum or signum
