"""Progress of long work, shown where the logger "imagepiece_jax" is on level INFO.

Commands turn it on (`show_progress`), and a library's caller may.
"""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger("imagepiece_jax.progress")
notes = logging.getLogger("imagepiece_jax.notes")  # on images, for a command's stdout

PATIENCE_SECONDS = 3.0  # seconds of work before the first line
LINE_INTERVAL_SECONDS = 30.0  # seconds from line to line of a log
T = TypeVar("T")


class ProgressHandler(logging.Handler):
    """Log handler: records on stderr, above a bar, and notes on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.name == notes.name else sys.stderr
        tqdm.write(self.format(record), file=stream)
        stream.flush()


def show_progress() -> None:
    """Print the package's records from level INFO on, as commands do."""
    logger = logging.getLogger("imagepiece_jax")
    logger.setLevel(logging.INFO)
    logger.handlers = [ProgressHandler()]
    logger.propagate = False  # a handler of absl would print each line again


@contextlib.contextmanager
def announced_work(task: str, enabled: bool = True) -> Iterator[None]:
    """Log that `task`, "compiling a step", is being done once it takes long.

    enabled: False in all but one of several processes
    """
    timer = threading.Timer(PATIENCE_SECONDS, log.info, [f"{task} .."])
    timer.daemon = True
    if enabled:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def with_progress_bar(items: Sequence[T], task: str) -> Iterator[T]:
    """Yield items and show a ProgressBar."""
    with ProgressBar(task, len(items)) as progress:
        for item in items:
            yield item
            progress.update(1)


class ProgressBar(tqdm):
    """Progress over `num_items` items: a bar on a terminal, lines in a log.

    description: a phrase such as "drawing figures"
    num_done: items that an earlier process has done
    """

    def __init__(self, description: str, num_items: int, num_done: int = 0) -> None:
        self._meter = {"prefix": description, "initial": num_done, "total": num_items}
        self._start_time = time.monotonic()
        self._next_line_time = self._start_time + PATIENCE_SECONDS
        # None: tqdm draws a bar on a terminal alone.
        disable = None if log.isEnabledFor(logging.INFO) else True
        options = {"delay": PATIENCE_SECONDS, "leave": False, "disable": disable}
        super().__init__(desc=description, total=num_items, initial=num_done, **options)

    def update(self, n: float | None = 1) -> None:
        """Count `n` more items as done."""
        if not self.disable:
            super().update(n)
            return
        self.n += n
        now = time.monotonic()
        if now >= self._next_line_time and self.n < self._meter["total"]:
            elapsed = now - self._start_time
            log.info(self.format_meter(self.n, elapsed=elapsed, **self._meter))
            self._next_line_time = now + LINE_INTERVAL_SECONDS


def duration_text(seconds: float) -> str:
    """Format a duration: "40 s", "9 min" or "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
