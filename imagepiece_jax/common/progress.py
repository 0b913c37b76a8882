"""Progress of long work on stderr: elapsed time on a terminal, else lines."""

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

    On a terminal the line shows the elapsed time, and disappears at the end.

    what: such as "compiling the training step"
    enabled: False in all but one of several processes
    """
    if not enabled:
        yield
        return
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(what, done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def counted(items: Sequence, what: str) -> Iterator[Any]:
    """Yield items, and say on stderr how many are done (`Progress`).

    what: such as "drawing figures"
    """
    with Progress(what, len(items)) as progress:
        for item in items:
            yield item
            progress.add(1)


class Progress:
    """How many things are done, and how long the others take, on stderr.

    A terminal shows a bar, which disappears at the end; a log gets a line every
    INTERVAL seconds.

    what: such as "drawing figures"
    done: how many of `total` an earlier process has done
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self._what = what
        self._total = total
        self._done = done
        self._done_at_first_add = None  # of which the time includes compiling
        self._bar = tqdm(
            desc=what,
            total=total,
            initial=done,
            delay=PATIENCE,
            leave=False,
            disable=None,  # off where stderr is no terminal
        )
        self._timed_from = time.monotonic()  # set again by the first `add`
        self._next_line_at = self._timed_from + INTERVAL

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def add(self, count: int):
        """Note that `count` more are done.

        The time left is told by all but the first, which wait for the compiler.
        """
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._done_at_first_add is None:
            self._done_at_first_add = self._done
            self._timed_from = now
        is_known = self._done_at_first_add < self._done < self._total
        if self._bar.disable and now >= self._next_line_at and is_known:
            timed = self._done - self._done_at_first_add
            seconds = (now - self._timed_from) / timed
            left = in_words(seconds * (self._total - self._done))
            line = f"{self._what}: {self._done} of {self._total}, about {left} left"
            self.say(line)
            self._next_line_at = now + INTERVAL

    def say(self, line: str):
        """Write a line on stderr, above the bar."""
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def in_words(seconds: float) -> str:
    """A time of seconds, minutes or hours: "40 s", "9 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _tell(what, done):
    """Say on stderr what is being done, from PATIENCE seconds until `done` is set."""
    if done.wait(PATIENCE):
        return
    form = "{desc} .. {elapsed}"
    with tqdm(desc=what, bar_format=form, leave=False, disable=None) as line:
        if line.disable:
            print(f"{what} ..", file=sys.stderr, flush=True)
            return
        line.start_t -= PATIENCE
        while not done.wait(1):
            line.refresh()
