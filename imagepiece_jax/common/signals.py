"""How a signal ends a command: with one line, and nothing half-written.

END_SIGNALS end the process inside their handler, after it has removed unfinished
files. Python calls a handler once C code, such as a compiler, returns.
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
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn, TypeAlias

log = logging.getLogger("imagepiece_jax.signals")

Handler: TypeAlias = Callable[[int, types.FrameType | None], Any] | int | None

# SIGINT is Ctrl-C.
END_SIGNALS: dict[int, str]
END_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    END_SIGNALS[signal.SIGHUP] = "hung up"  # the terminal is gone, or ssh
    END_SIGNALS[signal.SIGUSR1] = "ended by SIGUSR1"  # from schedulers, before a kill

_unfinished_paths = {}  # {path to remove at a signal: whether only if empty}
_is_command = False
_deferred_signums = []  # signals deferred by a command


def handle_ending_signals() -> None:
    """Let signals end this process, a command."""
    global _is_command
    _is_command = True
    # An ignored signal stays ignored: a shell's `&` starts processes that ignore
    # Ctrl-C.
    for signum in heeded_signals():
        signal.signal(signum, _end_process)
    atexit.register(_ignore_signals)  # registered first, so called last


def heeded_signals() -> list[int]:
    """List the END_SIGNALS not ignored by this process."""
    return [s for s in END_SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]


@contextlib.contextmanager
def unfinished_path(path: str | os.PathLike, if_empty: bool = False) -> Iterator[None]:
    """Remove `path` if a signal ends the command inside this context.

    path: a file or a folder
    if_empty: keep a folder that holds files
    """
    _unfinished_paths[path] = if_empty
    try:
        yield
    finally:
        _unfinished_paths.pop(path, None)


@contextlib.contextmanager
def replaced_handlers(
    handler: Handler, signums: Collection[int]
) -> Iterator[dict[int, Handler]]:
    """Handle signals by `handler`. Yields {signal: previous handler}."""
    previous_handlers = {}
    # Python handles signals only in the main thread: elsewhere nothing is replaced.
    if threading.current_thread() is threading.main_thread():
        for signum in signums:
            previous_handlers[signum] = signal.signal(signum, handler)
    try:
        yield previous_handlers
    finally:
        for signum, previous_handler in previous_handlers.items():
            signal.signal(signum, previous_handler)


@dataclasses.dataclass
class EarlyStop:
    """A request by signals to end some work."""

    defers: bool = False  # the work has a result, and ends by itself
    signums: list[int] = dataclasses.field(default_factory=list)  # arrived so far

    @property
    def requested(self) -> bool:
        return bool(self.signums)


@contextlib.contextmanager
def stoppable_work(warning: str = "", defers: bool = False) -> Iterator[EarlyStop]:
    """Let a signal end the work inside early. Yields its EarlyStop.

    A signal acts at once unless it is deferred: it ends a command, and Ctrl-C raises
    KeyboardInterrupt elsewhere.

    warning: warning for the first signal if it is not deferred
    """
    stop = EarlyStop(defers)

    def note_signal(signum: int, frame: types.FrameType | None) -> None:
        if not (stop.defers or stop.requested):
            log.warning(warning)
        stop.signums.append(signum)
        if not stop.defers:
            if callable(previous_handler := previous_handlers[signum]):
                previous_handler(signum, frame)
        elif _is_command:
            _deferred_signums.append(signum)

    # Only signals with a Python handler can be deferred: both in a command, Ctrl-C in
    # other processes.
    signums = [signum for signum in END_SIGNALS if callable(signal.getsignal(signum))]
    with replaced_handlers(note_signal, signums) as previous_handlers:
        yield stop


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Finish the work inside before a signal ends the process."""
    try:
        with stoppable_work(defers=True) as stop:
            yield
    finally:  # an error may come from the signal: a lost terminal refuses prints
        # An earlier `stoppable_work` of the command may have deferred the signal.
        for signum in [*_deferred_signums, *stop.signums][:1]:
            signal.raise_signal(signum)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let a signal end the process at once, in C code, too.

    The operating system ends it: no Python runs, so nothing is printed or removed.
    """
    with replaced_handlers(signal.SIG_DFL, heeded_signals()):
        yield


@contextlib.contextmanager
def blocked_signals(*signums: int) -> Iterator[None]:
    """Start child processes with these signals blocked from their start on."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _end_process(signum: int, frame: types.FrameType | None) -> NoReturn:
    """Handler of a command's signals: clean up, print one line, end the process."""
    # The process ends here, without an exception: Python ignores exceptions in
    # callbacks of C code, NumPy turns them into a TypeError, and the interpreter would
    # crash at its end while threads compile.
    _ignore_signals()  # a second signal must not print a second line
    for path, if_empty in _unfinished_paths.items():
        with contextlib.suppress(OSError):
            (os.rmdir if if_empty else os.unlink)(path)
        if not if_empty:
            shutil.rmtree(path, ignore_errors=True)
    # The pipe may be closed, or the signal may have interrupted a flush.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    line_break = "\n" if os.isatty(2) else ""  # after a progress bar, or ^C
    with contextlib.suppress(OSError):
        os.write(2, f"{line_break}{END_SIGNALS[signum]}\n".encode())
    os._exit(128 + signum)


def _ignore_signals() -> None:
    """Ignore further signals, because the process is about to end."""
    for signum in END_SIGNALS:
        if signal.getsignal(signum) is _end_process:
            signal.signal(signum, signal.SIG_IGN)
