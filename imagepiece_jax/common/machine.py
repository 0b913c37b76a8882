"""CPU cores available to a process, on every platform."""

import math
import os
import pathlib
from collections.abc import Iterator

CGROUPS = pathlib.Path("/sys/fs/cgroup")
OWN_CGROUPS = pathlib.Path("/proc/self/cgroup")


def available_cores() -> int:
    """Number of CPU cores available to this process, at least 1."""
    # On Linux a job may be bound to some cores, or have a quota of their time.
    core_count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        core_count = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min([core_count, *_core_quotas()])))


def default_threads() -> int:
    """Number of threads that decode images, unless a caller names another."""
    return min(16, available_cores())


def _core_quotas() -> Iterator[float]:
    """Yield the quotas, in cores, of this process's cgroups and their parents."""
    try:
        cgroup_lines = os.fsdecode(OWN_CGROUPS.read_bytes()).splitlines()
    except OSError:  # not Linux
        return
    for cgroup_line in cgroup_lines:
        _, controllers, cgroup_path = (cgroup_line + "::").split(":", 2)
        cgroup = pathlib.PurePosixPath(cgroup_path.rstrip(":").lstrip("/"))
        root_folders = []
        if not controllers:  # version 2
            root_folders = [CGROUPS]
        elif "cpu" in controllers.split(","):  # version 1
            # The folder may name them in another order.
            root_folders = [CGROUPS / controllers, CGROUPS / "cpu"]
        for root_folder in root_folders:
            # A container may show the host's path of a cgroup. Its folder is then the
            # root, the last parent.
            for folder in (cgroup, *cgroup.parents):
                yield from _cgroup_quota(root_folder / folder)


def _cgroup_quota(folder: pathlib.Path) -> Iterator[float]:
    """Yield a cgroup's quota in cores, if it has one (version 2 or 1)."""
    for file_names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            file_texts = [(folder / name).read_text() for name in file_names]
            quota_us, period_us = map(int, " ".join(file_texts).split())
        except (OSError, ValueError):  # there is none, or its quota is "max"
            continue
        if quota_us > 0 and period_us > 0:  # -1: version 1 has no limit
            yield quota_us / period_us
