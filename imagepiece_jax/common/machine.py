"""CPU cores available to a process, on every platform."""

import math
import os
import pathlib

CGROUPS = pathlib.Path("/sys/fs/cgroup")
OWN_CGROUPS = pathlib.Path("/proc/self/cgroup")


def available_cores() -> int:
    """Number of CPU cores available to this process, at least 1."""
    # On Linux a job may be bound to some cores, or have a quota of their time.
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min([count, *_quotas()])))


def _quotas():
    """Yield the quotas, in cores, of this process's cgroups and their parents."""
    try:
        lines = os.fsdecode(OWN_CGROUPS.read_bytes()).splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, path = (line + "::").split(":", 2)
        cgroup = pathlib.PurePosixPath(path.rstrip(":").lstrip("/"))
        roots = []
        if not kinds:  # version 2
            roots = [CGROUPS]
        elif "cpu" in kinds.split(","):  # version 1; the folder may have another order
            roots = [CGROUPS / kinds, CGROUPS / "cpu"]
        for root in roots:
            # A container may show the host's path of a cgroup. Its folder is then the
            # root, the last parent.
            for folder in (cgroup, *cgroup.parents):
                yield from _quota(root / folder)


def _quota(folder):
    """Yield a cgroup's quota in cores, if it has one (version 2 or 1)."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            texts = [(folder / name).read_text() for name in names]
            quota, period = map(int, " ".join(texts).split())
        except (OSError, ValueError):  # there is none, or its quota is "max"
            continue
        if quota > 0 and period > 0:  # -1: version 1 has no limit
            yield quota / period
