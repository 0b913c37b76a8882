"""Which device is measured? Its name, its memory, and how JAX's programs are timed."""

import importlib.metadata
import os
import pathlib
import platform as host

import jax

from imagepiece_jax.benchmark.timer import Job
from imagepiece_jax.errors import InputError

AHEAD = 2  # calls in the queue, so that a device need not wait for its host
LIBRARIES = ("jax", "jaxlib", "flax")


def use(name):
    """Make "cpu" or "gpu" JAX's device, or leave its "default" one.

    Before anything is computed. InputError where it is not there.
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


def platform():
    """What JAX calls its kind: "cpu", "gpu" or "tpu"."""
    return jax.devices()[0].platform


def fast_dtype():
    """The dtype to measure in where none is named: of bfloat16 CPUs make slow work."""
    return "float32" if platform() == "cpu" else "bfloat16"


def name():
    """What the device is called; of a CPU its model and how many cores may be used."""
    if platform() != "cpu":
        return jax.devices()[0].device_kind
    return f"{_cpu_model()}, {cores()} cores"


def cores():
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_model():
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(named, host.machine())


def memory():
    """Bytes that programs may use on it."""
    stats = jax.devices()[0].memory_stats() or {}
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", pages)


def job(call):
    """A Job of `call(number)`, which returns arrays of JAX.

    On a CPU one call at a time, as PyTorch computes there, too.
    """
    ahead = 0 if platform() == "cpu" else AHEAD
    return Job(call, jax.block_until_ready, ahead)


def needed(compiled):
    """Bytes that a compiled program of JAX holds while it runs; None if not told."""
    told = compiled.memory_analysis()
    if told is None:
        return None
    parts = ("argument_size", "output_size", "temp_size")
    total = sum(getattr(told, f"{part}_in_bytes") for part in parts)
    return total - told.alias_size_in_bytes


def versions(libraries=()):
    """Of Python, of JAX with what drives the device, and of further `libraries`."""
    found = {
        name: importlib.metadata.version(name) for name in (*LIBRARIES, *libraries)
    }
    backend = " ".join(jax.devices()[0].client.platform_version.split())
    return {"python": host.python_version(), **found, "backend": backend}
