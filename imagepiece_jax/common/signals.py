"""Signals that end long work after its current step, with its result kept."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]  # Ctrl-C, and a scheduler's
if hasattr(signal, "SIGUSR1"):  # not on Windows
    STOP_SIGNALS.append(signal.SIGUSR1)  # of a scheduler, before it kills


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process, a command, by SystemExit."""
    # Contexts then remove their unfinished files.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


@contextlib.contextmanager
def handled_signals(handler: Any, signums: Iterable[int]) -> Iterator[None]:
    """Handle signals by `handler` inside; ignored signals stay ignored."""
    # A shell's `&` starts processes that ignore Ctrl-C. Python handles signals only in
    # the main thread: elsewhere nothing is replaced.
    previous_handlers = {}
    if threading.current_thread() is threading.main_thread():
        for signum in signums:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                previous_handlers[signum] = signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, previous_handler in previous_handlers.items():
            signal.signal(signum, previous_handler)


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note STOP_SIGNALS in the yielded list; a second one, if Ctrl-C, interrupts."""
    received_signals = []

    def note_signal(signum, frame):
        if received_signals and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received_signals.append(signum)

    with handled_signals(note_signal, STOP_SIGNALS):
        yield received_signals


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Block STOP_SIGNALS: processes started inside never receive them."""
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
