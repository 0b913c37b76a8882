"""The benchmarked device: its name, memory and versions."""

import importlib.metadata
import pathlib
import platform as host
import re
from collections.abc import Iterable

import jax

from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.common.version import KEY_LIBRARIES

NUM_INPUTS = 4  # different inputs, which calls take in turn


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
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def library_versions(libraries: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, KEY_LIBRARIES, further `libraries`, and JAX's backend."""
    versions = {"python": host.python_version()}
    for library in (*KEY_LIBRARIES, *libraries):
        versions[library] = importlib.metadata.version(library)
    versions["backend"] = " ".join(jax.devices()[0].client.platform_version.split())
    return versions
