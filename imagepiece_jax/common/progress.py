"""Progress of long work on stderr."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

PATIENCE = 3.0  # seconds of work before anything is said
INTERVAL = 30.0  # seconds from line to line of a log


@contextlib.contextmanager
def working(what: str, enabled: bool = True):
    """Say on stderr what is being done, once it has taken PATIENCE seconds.

    what: such as "compiling the training step"
    enabled: False in all but one of several processes
    """
    timer = threading.Timer(PATIENCE, _say, [f"{what} .."])
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def counted(items: Sequence, what: str) -> Iterator[Any]:
    """Yield items, and show on stderr how many are done (`Progress`).

    what: such as "drawing figures"
    """
    with Progress(what, len(items)) as progress:
        for item in items:
            yield item
            progress.update(1)


class Progress(tqdm):
    """How many things are done: a bar on a terminal, and lines in a log.

    what: such as "drawing figures"
    done: how many of `total` an earlier process has done
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self._what = what
        self._done = done
        self._began = time.monotonic()
        self._next_line = self._began + INTERVAL
        options = {"delay": PATIENCE, "leave": False, "disable": None}
        super().__init__(desc=what, total=total, initial=done, **options)

    def update(self, n: int = 1):
        """Note that `n` more are done."""
        if not self.disable:
            super().update(n)
            return
        self.n += n
        now = time.monotonic()
        if now >= self._next_line and self.n < self.total:
            state = {"n": self.n, "total": self.total, "initial": self._done}
            state |= {"elapsed": now - self._began, "prefix": self._what}
            self.say(self.format_meter(**state))
            self._next_line = now + INTERVAL

    def say(self, line: str):
        """Write a line on stderr, above the bar."""
        if sys.stderr is not None:  # it is closed
            self.write(line, file=sys.stderr)


def in_words(seconds: float) -> str:
    """A time of seconds, minutes or hours: "40 s", "9 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _say(line):
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)
