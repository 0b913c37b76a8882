"""What a process may use of its machine, on every platform."""

import os


def cores() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux a job may have been given a few
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
