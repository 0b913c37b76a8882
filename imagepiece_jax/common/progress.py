"""Progress of long work: a bar or the elapsed time on a terminal, lines in a log."""

import contextlib
import sys
import threading
import time

from tqdm import tqdm

EVERY = 30  # seconds between lines
PATIENCE = 3.0  # seconds of work before anything is said


@contextlib.contextmanager
def progress(label, total=None):
    """Show the progress and the time left: a bar on a terminal, else lines.

    Yields a function that takes numbers of images; those of an earlier run come with
    `before=True` and do not count for the speed.
    """
    bar = tqdm(
        desc=label, total=total, unit=" images", dynamic_ncols=True, disable=None
    )
    start = printed = time.monotonic()
    done = initial = 0

    def advance(images, before=False):
        nonlocal done, initial, printed
        done += images
        if before:
            initial = bar.initial = bar.n = bar.last_print_n = done
            return
        bar.update(images)
        if bar.disable and (time.monotonic() - printed > EVERY or done == total):
            printed = time.monotonic()
            line = tqdm.format_meter(
                done, total, printed - start, 0, label, unit=" images", initial=initial
            )
            print(line, file=sys.stderr, flush=True)

    with bar:
        yield advance


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


def _tell(what, done):
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
