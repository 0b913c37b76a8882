"""Graceful shutdown on SIGTERM and SIGINT.

Schedulers that preempt a job send SIGTERM and kill it some 30 seconds later. Python
runs signal handlers only between two of its own instructions, and a compile is one
instruction that may last minutes. A thread therefore counts the seconds, and ends the
process when the signal has not been answered in time.
"""

import os
import signal
import socket
import sys
import threading
import time

from imagepiece_jax.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 20.0  # seconds until a signal must have been answered; saving comes on top


class Interrupted(Exception):
    """Work that was abandoned because of a signal, and changed nothing."""


class StopRequest:
    """While entered, Ctrl-C and SIGTERM request a stop.

    The main thread calls `asked` as often as it can; after a signal it calls `answered`
    and saves. After `patience` seconds without that the process ends with status 128 +
    signum; the function given to `rescue_by` is called before. A second Ctrl-C ends it
    at once. `patience` may be changed; 0 is for times when there is nothing to save.

    `agree(number)` is the number that all processes of a run agree on.
    """

    def __init__(self, patience=PATIENCE, agree=int):
        self.patience = patience
        self._agree = agree
        self._signum = self._agreed = 0
        self._rescue = self._writer = None
        self._lock = threading.Lock()

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
        self.answered()
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def asked(self):
        """The signal that asks to stop, or 0.

        All processes of a run ask equally often, and get the same.
        """
        self._agreed = self._agreed or self._agree(self._signum)
        return self._agreed

    def answered(self):
        """Lift the time limit: the run is being saved. Calling twice is allowed.

        Signals that arrive from now on, until this is left, change nothing.
        """
        with self._lock:
            if self._writer is None:
                return
            signal.set_wakeup_fd(-1)
            self._writer.close()
            self._writer = None
        self._thread.join()

    def rescue_by(self, save):
        """Set the function that saves the run when the time is up; None: nothing can.

        It is called in another thread and returns the step that it saved; afterwards
        this method does not return.
        """
        with self._lock:
            self._rescue = save

    def until_asked(self, items):
        """Yield the items; after a signal, Interrupted instead of the next."""
        for item in items:
            if self.asked():
                raise Interrupted
            yield item

    def _note(self, signum, frame):
        self._signum = self._signum or signum

    def _watch(self, reader):
        """Count the seconds, in a thread: each signal arrives as a byte, its number."""
        asked = deadline = None
        with reader:
            while True:
                if asked:
                    reader.settimeout(max(deadline - time.monotonic(), 1e-3))
                try:
                    received = reader.recv(1)
                except TimeoutError:
                    with self._lock:
                        if self._writer is not None:
                            self._give_up(asked)
                    return
                if not received:  # answered
                    return
                (signum,) = received
                if asked and signum == signal.SIGINT:
                    _end_now(signum, "stopped without saving")
                if signum in SIGNALS and not asked:
                    asked, deadline = signum, time.monotonic() + self.patience

    def _give_up(self, signum):
        words = "stopped with nothing to save"
        if self.patience > 0:
            words = "stopped in the middle of a step, without saving"
        if self._rescue is not None:
            try:
                _leave(signum, str(Stopped(signum, self._rescue())))
            except Exception as error:
                words = f"stopped without saving ({error})"
        _end_now(signum, words)


def _end_now(signum, words):
    """End without having saved."""
    words += "; the same command resumes from the newest checkpoint, if there is one"
    _leave(signum, words)


def _leave(signum, words):
    """End this process at once. Workers of the loader end when their pipe closes."""
    os.write(sys.stderr.fileno(), f"{words}\n".encode())
    os._exit(128 + signum)
