"""How a signal ends a command: at once, in one line, with nothing half-written.

Ctrl-C (SIGINT) and SIGTERM raise no exception in a command. Python ignores one in
callbacks of C code, NumPy makes a TypeError of it, and whoever catches it lets the
interpreter end, which crashes beside threads that compile. The process ends in the
handler, which removes what is unfinished: see `unfinished`, `new_folders`, `finishing`,
`deferring`.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
PATIENCE = 1.0  # seconds that C code may keep the main thread from its handlers

arrived = 0  # the first signal that has arrived; 0: none
_deferring = []  # functions of a signal's number: whether it ends nothing yet
_unfinished = set()  # files and folders that a signal removes
_new = []  # folders that it removes where they are empty
_ending = threading.RLock()  # of the thread that ends the process


def end_process():
    """From now on a signal ends this process, which is a command's.

    One that is ignored stays so: a shell's `&` starts processes that ignore Ctrl-C.
    """
    defaults = (signal.default_int_handler, signal.SIG_DFL)
    taken = [signum for signum in SIGNALS if signal.getsignal(signum) in defaults]
    for signum in taken:
        signal.signal(signum, _hear)
    if taken:
        Listener(_hear_in_place)
        atexit.register(_ignore)  # called last: it is registered first


@contextlib.contextmanager
def unfinished(path):
    """Context of a file or folder that a signal removes if it ends the process."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


@contextlib.contextmanager
def new_folders(folders):
    """Context of folders that a signal removes if it ends the process: empty ones.

    folders: inner ones first
    """
    _new[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            _new.remove(folder)


@contextlib.contextmanager
def deferring(stop):
    """Context in which a signal ends nothing where `stop(its number)` is true.

    `stop` may raise KeyboardInterrupt, too, where what it passes through is known.
    In the main thread of another process than a command's, that is Ctrl-C, which raises
    KeyboardInterrupt as usual where it is not true.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    takes = is_main and callable(before) and before is not _hear

    def defer(signum, frame):
        if not stop(signum):
            before(signum, frame)

    if takes:
        signal.signal(signal.SIGINT, defer)
    _deferring.append(stop)
    try:
        yield
    finally:
        _deferring.remove(stop)
        if takes:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def finishing():
    """Context of a command's work that is done before a signal ends the process."""
    _deferring.append(_always)
    try:
        yield
    finally:
        _deferring.remove(_always)
    if arrived:
        _hear(arrived, None)


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


def _always(signum):
    return True


class Listener:
    """A thread that calls `hear(signum)` for each signal that Python handles.

    It does so while the main thread runs C code, too, which its handlers wait for.
    """

    def __init__(self, hear):
        reader, self._writer = os.pipe()  # signals are written to it
        if hasattr(os, "set_blocking"):  # not on Windows before Python 3.12
            os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(
            target=self._listen, args=(reader, hear), name="signals", daemon=True
        )
        self._thread.start()

    def pause(self):
        """Hear no more; `close` gives signals back to the listener before."""
        if self._writer is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._writer)
            self._writer = None
            self._thread.join()

    def close(self):
        self.pause()
        signal.set_wakeup_fd(self._before)

    def _listen(self, reader, hear):
        with open(reader, "rb", buffering=0) as bytes_of_signals:
            while received := bytes_of_signals.read(1):  # empty: closed
                (signum,) = received
                if signum in SIGNALS:
                    hear(signum)


def _hear(signum, frame):
    """Handler of SIGNALS: end the process, unless somebody finishes something first."""
    global arrived
    arrived = arrived or signum
    if any([stop(signum) for stop in [*_deferring]]):
        return
    with _ending:  # another thread waits here for the end
        for path in [*_unfinished]:
            _remove(path)
        for folder in [*_new]:
            with contextlib.suppress(OSError):  # it holds something
                os.rmdir(folder)
        # The pipe may be closed, or this signal may have interrupted a flush: the
        # process ends all the same.
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(ValueError):  # not in the main thread
            _ignore()  # so that there is one line
        lead = "\n" if os.isatty(2) else ""  # behind a progress bar, and ^C
        with contextlib.suppress(OSError):
            os.write(2, f"{lead}{SIGNALS[arrived]}\n".encode())
        os._exit(128 + arrived)


def _hear_in_place(signum):
    """Call `_hear` in place of the main thread where that runs C code for long."""
    time.sleep(PATIENCE)
    if not arrived and signal.getsignal(signum) is _hear:
        with contextlib.suppress(KeyboardInterrupt):  # the main thread's handler raises
            _hear(signum, None)


def _remove(path):
    """Remove a file or folder, if it is there."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _remove(os.path.join(folder, name))
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _ignore():
    """Ignore signals at the very end of a process."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is _hear:
            signal.signal(signum, signal.SIG_IGN)
