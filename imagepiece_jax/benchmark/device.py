"""The benchmarked device: name, memory and versions."""

import importlib.metadata
import os
import pathlib
import platform as host

import jax

from imagepiece_jax.common.files import memory_bytes
from imagepiece_jax.errors import InputError

LIBRARIES = ("jax", "jaxlib", "flax")


def use(name: str):
    """Select "cpu", "gpu" or JAX's "default" device; InputError if it is missing.

    Call it before anything is computed.
    """
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        found = platform()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--device is {name}, but JAX finds none: {reason}") from error
    if name not in ("default", found):
        raise InputError(
            f"--device is {name}, but JAX finds no such device here, or lacks its "
            f"plugin; allowed are {', '.join(dict.fromkeys(('default', 'cpu', found)))}"
        )


def platform() -> str:
    """Return JAX's name of the platform: "cpu", "gpu" or "tpu"."""
    return jax.devices()[0].platform


def name() -> str:
    """Return the device's name; for a CPU its model and usable cores."""
    if platform() != "cpu":
        return jax.devices()[0].device_kind
    return f"{_cpu_model()}, {cores()} cores"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_model():
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(named, host.machine())


def memory() -> int:
    """Return the bytes of memory that programs may use on the device."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", memory_bytes())


def needed(compiled):
    """Return the bytes that a compiled program holds while it runs; None if unknown."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    parts = ("argument_size", "output_size", "temp_size")
    total = sum(getattr(sizes, f"{part}_in_bytes") for part in parts)
    return total - sizes.alias_size_in_bytes


def versions(libraries=()) -> dict[str, str]:
    """Return versions of Python, JAX with its backend, and further `libraries`."""
    found = {
        name: importlib.metadata.version(name) for name in (*LIBRARIES, *libraries)
    }
    backend = " ".join(jax.devices()[0].client.platform_version.split())
    return {"python": host.python_version(), **found, "backend": backend}
