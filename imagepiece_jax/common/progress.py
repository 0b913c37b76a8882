"""Progress of long work on stderr."""

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

PATIENCE = 3.0  # seconds of work before anything is said
INTERVAL = 30.0  # seconds between two states of a bar in a log


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
    """A bar on stderr, once the work has taken PATIENCE seconds; a log gets few.

    what: such as "drawing figures"
    done: how many of `total` an earlier process has done
    """

    def __init__(self, what: str, total: int, done: int = 0):
        interval = 0.1 if sys.stderr.isatty() else INTERVAL
        super().__init__(
            desc=what,
            total=total,
            initial=done,
            delay=PATIENCE,
            leave=False,
            mininterval=interval,
            maxinterval=max(10.0, interval),
        )

    def say(self, line: str):
        """Write a line on stderr, above the bar."""
        self.write(line, file=sys.stderr)
        sys.stderr.flush()


def in_words(seconds: float) -> str:
    """A time of seconds, minutes or hours: "40 s", "9 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _say(line):
    print(line, file=sys.stderr, flush=True)
