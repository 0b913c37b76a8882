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
    """Yield items, and say on stderr how many are done.

    A terminal shows a bar, which disappears at the end; a log gets a line every
    INTERVAL seconds.

    what: such as "drawing figures"
    """
    bar = tqdm(items, desc=what, delay=PATIENCE, leave=False, disable=None)
    if not bar.disable:
        yield from bar
        return
    due = time.monotonic() + INTERVAL
    for done, item in enumerate(items):
        if time.monotonic() >= due:
            print(f"{what}: {done} of {len(items)}", file=sys.stderr, flush=True)
            due = time.monotonic() + INTERVAL
        yield item


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
