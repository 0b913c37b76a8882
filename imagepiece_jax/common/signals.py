"""How a signal ends a command: with one line, and nothing half-written.

SIGNALS end the process inside their handler, after it has removed `unfinished` files.
Python calls a handler once C code, such as a compiler, returns.
"""

import atexit
import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Collection

log = logging.getLogger("imagepiece_jax.signals")

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}  # SIGINT: Ctrl-C
if hasattr(signal, "SIGHUP"):  # not on Windows
    SIGNALS[signal.SIGHUP] = "hung up"  # the terminal is gone, or ssh
    SIGNALS[signal.SIGUSR1] = "ended by SIGUSR1"  # which schedulers send before a kill

_unfinished = {}  # {path to remove at a signal: whether only if empty}
_is_command = False
_arrived = []  # signals deferred by a command


def end_process():
    """Let signals end this process, a command."""
    global _is_command
    _is_command = True
    # An ignored signal stays ignored: a shell's `&` starts processes that ignore
    # Ctrl-C.
    for signum in not_ignored():
        signal.signal(signum, _end)
    atexit.register(_ignore)  # registered first, so called last


def not_ignored() -> list[int]:
    """List the SIGNALS not ignored by this process."""
    return [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]


@contextlib.contextmanager
def unfinished(path, if_empty: bool = False):
    """Remove `path` if a signal ends the command inside this context.

    path: a file or a folder
    if_empty: keep a folder that holds files
    """
    _unfinished[path] = if_empty
    try:
        yield
    finally:
        _unfinished.pop(path, None)


@contextlib.contextmanager
def handled_by(handler, signums: Collection[int]):
    """Handle signals by `handler`. Yields {signal: previous handler}."""
    before = {}
    # Python handles signals only in the main thread: elsewhere nothing is replaced.
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield before
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@dataclasses.dataclass
class Stop:
    """A request by signals to end some work."""

    defers: bool = False  # the work has a result, and ends by itself
    signums: list[int] = dataclasses.field(default_factory=list)  # arrived so far

    @property
    def requested(self) -> bool:
        return bool(self.signums)


@contextlib.contextmanager
def stopping(without_result: str = "", defers: bool = False):
    """Let a signal end the work inside early. Yields its Stop.

    A signal acts at once unless it is deferred: it ends a command, and Ctrl-C raises
    KeyboardInterrupt elsewhere.

    without_result: warning for the first signal if it is not deferred
    """
    stop = Stop(defers)

    def note(signum, frame):
        if not (stop.defers or stop.requested):
            log.warning(without_result)
        stop.signums.append(signum)
        if not stop.defers:
            before[signum](signum, frame)
        elif _is_command:
            _arrived.append(signum)

    # Only signals with a Python handler can be deferred: both in a command, Ctrl-C in
    # other processes.
    signums = [s for s in SIGNALS if callable(signal.getsignal(s))]
    with handled_by(note, signums) as before:
        yield stop


@contextlib.contextmanager
def finishing():
    """Finish the work inside before a signal ends the process."""
    try:
        with stopping(defers=True) as stop:
            yield
    finally:  # an error may come from the signal: a lost terminal refuses prints
        # An earlier `stopping` of the command may have deferred the signal.
        for signum in [*_arrived, *stop.signums][:1]:
            signal.raise_signal(signum)


@contextlib.contextmanager
def ending_at_once():
    """Let a signal end the process at once, in C code, too.

    The operating system ends it: no Python runs, so nothing is printed or removed.
    """
    with handled_by(signal.SIG_DFL, not_ignored()):
        yield


@contextlib.contextmanager
def blocked(*signums):
    """Start child processes with these signals blocked from their start on."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(signum, frame):
    """Handler of a command's signals: clean up, print one line, end the process."""
    # The process ends here, without an exception: Python ignores exceptions in
    # callbacks of C code, NumPy turns them into a TypeError, and the interpreter would
    # crash at its end while threads compile.
    _ignore()  # a second signal must not print a second line
    for path, if_empty in _unfinished.items():
        with contextlib.suppress(OSError):
            (os.rmdir if if_empty else os.unlink)(path)
        if not if_empty:
            shutil.rmtree(path, ignore_errors=True)
    # The pipe may be closed, or the signal may have interrupted a flush.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    lead = "\n" if os.isatty(2) else ""  # after a progress bar, or ^C
    with contextlib.suppress(OSError):
        os.write(2, f"{lead}{SIGNALS[signum]}\n".encode())
    os._exit(128 + signum)


def _ignore():
    """Ignore further signals, because the process is about to end."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is _end:
            signal.signal(signum, signal.SIG_IGN)
