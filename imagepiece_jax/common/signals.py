"""How a signal ends a command: in one line, with nothing half-written.

Ctrl-C (SIGINT) and SIGTERM raise no exception in a command. Python ignores one in
callbacks of C code, NumPy turns it into a TypeError, and the interpreter would crash at
its end beside threads that compile. The process ends in the handler, which first
removes what is `unfinished`. Python calls it once C code, such as a compiler, returns.
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

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_unfinished = {}  # {file or folder that a signal removes: only if it is empty}
_is_command = False
_arrived = []  # the signals that a command has deferred


def end_process():
    """Let signals end this process, which runs a command.

    An ignored signal stays ignored: a shell's `&` starts processes that ignore Ctrl-C.
    """
    global _is_command
    _is_command = True
    for signum in not_ignored():
        signal.signal(signum, _end)
    atexit.register(_ignore)  # registered first, it is called last


def not_ignored() -> list[int]:
    """The signals that this process does not ignore."""
    return [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]


@contextlib.contextmanager
def unfinished(path, if_empty: bool = False):
    """Context of a file or folder that a signal removes if it ends the process.

    if_empty: whether a folder with files in it stays
    """
    _unfinished[path] = if_empty
    try:
        yield
    finally:
        _unfinished.pop(path, None)


@contextlib.contextmanager
def handled_by(handler, signums: Collection[int]):
    """Context in which `handler` handles signals.

    Yields the handlers before, by signal: none outside the main thread, as Python
    handles signals nowhere else.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield before
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@dataclasses.dataclass
class Stop:
    """What signals ask for: the end of some work."""

    defers: bool = False  # whether the work ends by itself, as it has a result
    signums: list[int] = dataclasses.field(default_factory=list)  # they have arrived

    @property
    def requested(self) -> bool:
        return bool(self.signums)


@contextlib.contextmanager
def stopping(without_result: str = "", defers: bool = False):
    """Context of work that a signal ends early. Yields its Stop.

    Where the Stop does not defer, a signal ends a command at once, and Ctrl-C raises
    KeyboardInterrupt elsewhere. Only signals with a handler in Python are deferred:
    both in a command, and Ctrl-C in other processes.

    without_result: what is said then
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

    signums = [s for s in SIGNALS if callable(signal.getsignal(s))]
    with handled_by(note, signums) as before:
        yield stop


@contextlib.contextmanager
def finishing():
    """Context of work that is finished before a signal ends the process.

    It may be a signal that a command deferred before.
    """
    with stopping(defers=True) as stop:
        yield
    for signum in [*_arrived, *stop.signums][:1]:
        signal.raise_signal(signum)


@contextlib.contextmanager
def ending_at_once():
    """Context in which a signal ends the process at once, in C code too.

    The operating system ends it: no Python runs, and nothing is said.
    """
    with handled_by(signal.SIG_DFL, not_ignored()):
        yield


@contextlib.contextmanager
def blocked(*signums):
    """Context whose new processes never receive these signals, from their start on."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(signum, frame):
    """Handler of a command's signals: clean up, say so, and end the process."""
    _ignore()  # so that there is one line
    for path, if_empty in _unfinished.items():
        with contextlib.suppress(OSError):
            (os.rmdir if if_empty else os.unlink)(path)
        if not if_empty:
            shutil.rmtree(path, ignore_errors=True)
    # The pipe may be closed, or the signal may have interrupted a flush.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    lead = "\n" if os.isatty(2) else ""  # behind a progress bar, and ^C
    with contextlib.suppress(OSError):
        os.write(2, f"{lead}{SIGNALS[signum]}\n".encode())
    os._exit(128 + signum)


def _ignore():
    """Ignore signals from now on, as the process is about to end."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is _end:
            signal.signal(signum, signal.SIG_IGN)
