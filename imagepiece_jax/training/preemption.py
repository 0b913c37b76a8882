"""Stopping at a signal: Ctrl-C, and the SIGTERM that schedulers send before a kill.

A run stops between two steps, where its state can be saved. During a compilation, which
may take minutes, Python does not run signal handlers; there a thread ends the process,
which has saved its state before. `trainer.Run.train` says what is saved after a step,
and `errors.Stopped` has the exit status.
"""

import contextlib
import os
import signal
import socket
import sys
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        self._writer = None  # Python writes signals to it, and a thread reads them

    def __enter__(self):
        try:
            self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        except ValueError:  # not in the main thread, where signals do not arrive
            self._before = {}
            return self
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._thread = threading.Thread(
            target=self._watch, args=(reader,), name="stop request", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.ignore_signals()
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
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
        if self._writer is None:
            return
        signal.set_wakeup_fd(-1)
        self._writer.close()
        self._writer = None
        self._thread.join()

    def until_requested(self, items):
        """Yield the items; raise Interrupted once a stop is requested."""
        for item in items:
            if self.requested():
                raise Interrupted
            yield item

    def _note(self, signum, frame):
        self._signum = self._signum or signum

    def _watch(self, reader):
        """Wait for signals, which arrive in this thread as bytes with their numbers."""
        received_before = False
        with reader:
            while received := reader.recv(1):  # empty: closed
                (signum,) = received
                if signum not in SIGNALS:
                    continue
                self._note(signum, None)
                if self._at_once:
                    _end(signum, "stopped with nothing to save")
                if received_before and signum == signal.SIGINT:
                    _end(signum, "stopped without saving")
                received_before = True


def _end(signum, words):
    """End this process at once. Workers of the loader end when their pipe closes."""
    words += "; the same command resumes from the newest checkpoint, if there is one"
    os.write(sys.stderr.fileno(), f"{words}\n".encode())
    os._exit(128 + signum)
