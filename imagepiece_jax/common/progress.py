"""What long work says: the elapsed time on a terminal, a line in a log."""

import contextlib
import sys
import threading

from tqdm import tqdm

PATIENCE = 3.0  # seconds of work before anything is said


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
