"""The benchmarked device: name, memory, versions and peak rates."""

import importlib.metadata
import pathlib
import platform as host
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imagepiece_jax.common import timer
from imagepiece_jax.common.machine import cores, memory_bytes
from imagepiece_jax.common.rng import normal, root_key
from imagepiece_jax.common.version import LIBRARIES

# What peak rates are measured with: sides of square matrices, of which the fastest
# counts, and bytes of a copied array, which is larger than any cache.
PEAK_SIZES = {"cpu": ((1024, 2048), 2**27)}
PEAK_SIZES_ELSEWHERE = ((4096, 8192, 16384), 2**30)
INPUTS = 4  # different inputs that calls take in turn


def platform() -> str:
    """JAX's name of the platform: "cpu", "gpu" or "tpu"."""
    return jax.devices()[0].platform


def name() -> str:
    """The device's name; for a CPU its model and usable cores."""
    if platform() != "cpu":
        return jax.devices()[0].device_kind
    return f"{_cpu_model()}, {cores()} cores"


def _cpu_model():
    file = pathlib.Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if "model name" in line:
                return line.partition(":")[2].strip()
    return host.machine()


def memory() -> int:
    """The bytes of memory that programs may use on the device."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", memory_bytes())


def program_bytes(compiled):
    """The bytes that a compiled program holds while it runs; None if unknown."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return None
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def versions(libraries=()) -> dict[str, str]:
    """Versions of Python, LIBRARIES, further `libraries`, and JAX's backend."""
    names = [*LIBRARIES, *libraries]
    installed = {name: importlib.metadata.version(name) for name in names}
    backend = " ".join(jax.devices()[0].client.platform_version.split())
    return {"python": host.python_version(), **installed, "backend": backend}


class PeakRates(NamedTuple):
    """The highest measured rates of a device."""

    matmul: float  # FLOP/s, 2 for each multiply-add
    copy: float  # bytes/s, read and written


def peak_rates(dtype: str, rules: timer.Rules) -> PeakRates:
    """Measure the highest rates of the default device, on random arrays.

    A model's share of the matmul rate says how much of the device it uses. The rates
    are measured because no program reaches those of datasheets.
    """
    sides, copied = PEAK_SIZES.get(platform(), PEAK_SIZES_ELSEWHERE)
    rates = []
    for side in sides:
        factor, *inputs = _normal((side, side), dtype, INPUTS + 1)
        seconds = _seconds(jnp.dot, inputs, rules, factor)
        rates.append(2 * side**3 / seconds)
    numbers = _normal((copied // 4,), "float32", 2)
    seconds = _seconds(jnp.negative, numbers, rules)
    return PeakRates(matmul=max(rates), copy=2 * copied / seconds)


def _normal(shape, dtype, count):
    @jax.jit
    def draw():
        keys = map(root_key, range(count))
        return [normal(each, shape, dtype=dtype) for each in keys]

    return draw()


def _seconds(function, inputs, rules, *more):
    """The median seconds of function(one of the inputs, *more)."""
    compiled = jax.jit(function)

    def call(number):
        return compiled(inputs[number % len(inputs)], *more)

    timed = timer.TimedCall(call)
    return statistics.median(timer.measure({"": timed}, rules)[""])
