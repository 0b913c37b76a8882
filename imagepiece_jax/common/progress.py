"""Progress of long work, for whoever asks for it.

Lines are records of the logger "imagepiece_jax" at level INFO, and there is a bar only
where that level is on. Commands turn it on (`show`); a library's caller may.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

log = logging.getLogger("imagepiece_jax.progress")
notes = logging.getLogger("imagepiece_jax.notes")  # on images, for a command's stdout

PATIENCE = 3.0  # seconds of work before anything is said
INTERVAL = 30.0  # seconds from line to line of a log


class Lines(logging.Handler):
    """Prints each record as a line on stderr, above a bar; a note on stdout."""

    def emit(self, record: logging.LogRecord):
        file = sys.stdout if record.name == notes.name else sys.stderr
        if file is None:  # it is closed
            return
        # A result is worth more than a note on it, which a full disk may refuse.
        full = OSError if file is sys.stderr else ()
        with contextlib.suppress(full):
            tqdm.write(self.format(record), file=file)
            file.flush()


def show():
    """Print what the package logs from level INFO on, as commands do."""
    logger = logging.getLogger("imagepiece_jax")
    logger.setLevel(logging.INFO)
    logger.handlers = [Lines()]
    logger.propagate = False  # a handler of absl would print each line again


@contextlib.contextmanager
def working(what: str, enabled: bool = True):
    """Log what is being done, once it has taken PATIENCE seconds.

    what: such as "compiling the training step"
    enabled: False in all but one of several processes
    """
    timer = threading.Timer(PATIENCE, log.info, [f"{what} .."])
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def counted(items: Sequence, what: str) -> Iterator[Any]:
    """Yield items, and show how many are done (`ProgressBar`).

    what: such as "drawing figures"
    """
    with ProgressBar(what, len(items)) as progress:
        for item in items:
            yield item
            progress.update(1)


class ProgressBar(tqdm):
    """How many things are done: a bar on a terminal, and lines in a log.

    what: such as "drawing figures"
    done: how many of `total` an earlier process has done
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self._what = what
        self._done = done
        self._began = time.monotonic()
        self._next_line = self._began
        self._is_timed = False  # the first things may compile: they are no estimate
        options = {"delay": PATIENCE, "leave": False, "disable": None}
        if not log.isEnabledFor(logging.INFO):
            options["disable"] = True
        super().__init__(desc=what, total=total, initial=done, **options)

    def update(self, n: int = 1):
        """Note that `n` more are done."""
        now = time.monotonic()
        if not self._is_timed:
            self._is_timed = True
            self._done = self.initial = self.n + n
            self._began = now
            self._next_line = now + PATIENCE
            self.start_t = time.time()
        if not self.disable:
            super().update(n)
            return
        self.n += n
        if now >= self._next_line and self.n < self.total:
            state = {"n": self.n, "total": self.total, "initial": self._done}
            state |= {"elapsed": now - self._began, "prefix": self._what}
            self.say(self.format_meter(**state))
            self._next_line = now + INTERVAL

    def say(self, line: str):
        """Log a line, which is printed above the bar."""
        log.info(line)


def in_words(seconds: float) -> str:
    """A time of seconds, minutes or hours: "40 s", "9 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
