"""CPU cores available to a process."""

import math
import os
import pathlib

QUOTA_FILE = pathlib.Path("/sys/fs/cgroup/cpu.max")  # a container's, in cgroup v2


def available_cores() -> int:
    """Number of CPU cores available to this process, at least 1."""
    # On Linux a job may be bound to some cores, or have a quota of their time.
    core_count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        core_count = len(os.sched_getaffinity(0))
    try:
        quota_us, period_us = map(int, QUOTA_FILE.read_text().split())
    except (OSError, ValueError):  # there is none, or its quota is "max"
        return core_count
    return max(1, min(core_count, math.ceil(quota_us / period_us)))


def default_threads() -> int:
    """Number of threads that decode images, unless a caller names another."""
    return min(16, available_cores())
