"""Progress over images: a bar on a terminal, lines in a log."""

import contextlib
import sys
import time

from tqdm import tqdm

EVERY = 30  # seconds between lines


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
