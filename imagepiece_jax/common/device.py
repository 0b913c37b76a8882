"""This process's device and CPU cores: names, counts, memory and versions."""

import importlib.metadata
import math
import os
import pathlib
import platform as host
import re

import jax

from imagepiece_jax.common.version import KEY_LIBRARIES

NUM_INPUTS = 4  # different inputs of a benchmark, which calls take in turn
QUOTA_FILE = pathlib.Path("/sys/fs/cgroup/cpu.max")  # a container's, in cgroup v2


def available_cores() -> int:
    """Number of CPU cores available to this process, at least 1."""
    # On Linux a job may be bound to some cores, or have a quota of their time.
    core_count = os.cpu_count() or 1  # None: unknown
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


def device_name() -> str:
    """The device's name. For a CPU: its model and usable cores."""
    device = jax.devices()[0]
    return describe_cpu() if device.platform == "cpu" else device.device_kind


def describe_cpu() -> str:
    """The CPU's model and usable cores."""
    cpu_model = host.machine()
    cpu_file = pathlib.Path("/proc/cpuinfo")
    if cpu_file.exists():
        model_line = re.search(r"model name\s*:(.*)", cpu_file.read_text())
        cpu_model = model_line[1].strip() if model_line else cpu_model
    return f"{cpu_model}, {available_cores()} cores"


def program_bytes(program: jax.stages.Compiled) -> int | None:
    """Bytes held by a running compiled program; None if unknown."""
    memory = program.memory_analysis()
    if memory is None:
        return None
    # An output in a donated argument's memory counts once.
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def library_versions() -> dict[str, str]:
    """Versions of Python, KEY_LIBRARIES and JAX's backend."""
    versions = {"python": host.python_version()}
    for library in KEY_LIBRARIES:
        versions[library] = importlib.metadata.version(library)
    versions["backend"] = " ".join(jax.devices()[0].client.platform_version.split())
    return versions
