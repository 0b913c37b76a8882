"""How does a process that works for another one begin? Its signals and its end."""

import multiprocessing
import os
import signal
import threading


def leave_to_parent(*signals):
    """In a child process: ignore `signals`, and end when the parent has ended.

    Signals of a terminal or a scheduler reach the whole group of processes, and the
    parent decides what they mean. It may end in any way, by SIGKILL too.
    """
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
