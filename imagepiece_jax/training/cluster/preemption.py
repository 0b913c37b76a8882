"""Stopping at a signal: Ctrl-C, and the SIGTERM that schedulers send before a kill.

A run stops between two steps, where its state can be saved. During a compilation, which
may take minutes, Python does not run signal handlers; there a thread ends the process,
which has saved its state before. `keeper` says what is saved after a step, and
`errors.Stopped` has the exit status.
"""

import contextlib
import os
import signal
import sys

from imagepiece_jax.common.signals import SIGNALS, Listener


class Interrupted(Exception):
    """Work that was stopped by a signal, and has changed nothing."""


class StopRequest:
    """A context in which Ctrl-C and SIGTERM request a stop.

    The main thread calls `requested` often, and saves when it returns a signal. Until
    then a second Ctrl-C ends the process at once.

    agree: function from this process's signal, or 0, to the signal on which all
        processes of a run agree; see `parallel.max_over_processes`
    """

    def __init__(self, agree=int):
        self._agree = agree
        self._signum = 0  # the first signal that has arrived here; 0: none
        self._agreed = 0  # the signal on which all processes have agreed; 0: none
        self._at_once = False  # whether a signal ends the process now
        self._heard_before = False  # whether the listener has heard a signal
        self._listener = None

    def __enter__(self):
        ignored = signal.SIG_IGN  # as Ctrl-C of a process that a shell's `&` starts
        heard = [s for s in SIGNALS if signal.getsignal(s) is not ignored]
        try:
            self._before = {s: signal.signal(s, self._note) for s in heard}
        except ValueError:  # not in the main thread, where signals do not arrive
            self._before = {}
        if self._before:
            self._listener = Listener(self._hear)
        return self

    def __exit__(self, *error):
        if self._listener is not None:
            self._listener.close()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextlib.contextmanager
    def ending_at_once(self):
        """Context in which a signal ends the process at once, as nothing is to save."""
        self._at_once = True
        if self._signum:  # arrived before
            _end(self._signum, "stopped with nothing to save")
        try:
            yield
        finally:
            self._at_once = False

    def requested(self):
        """The signal that requested a stop, or 0; later signals are ignored.

        All processes of a run call this equally often, and get the same result.
        """
        self._agreed = self._agreed or self._agree(self._signum)
        if self._agreed:
            self.ignore_signals()
        return self._agreed

    def ignore_signals(self):
        """Ignore signals from now on, until the end of the context."""
        if self._listener is not None:
            self._listener.pause()

    def until_requested(self, items):
        """Yield the items; raise Interrupted once a stop is requested."""
        for item in items:
            if self.requested():
                raise Interrupted
            yield item

    def _note(self, signum, frame):
        self._signum = self._signum or signum

    def _hear(self, signum):
        """Note a signal in the listener's thread, or end the process."""
        self._note(signum, None)
        if self._at_once:
            _end(signum, "stopped with nothing to save")
        if self._heard_before and signum == signal.SIGINT:
            _end(signum, "stopped without saving")
        self._heard_before = True


def _end(signum, words):
    """End this process at once. Workers of the loader end when their pipe closes."""
    words += "; the same command resumes from the newest checkpoint, if there is one"
    os.write(sys.stderr.fileno(), f"{words}\n".encode())
    os._exit(128 + signum)
