"""Peak rates of a device: its fastest matrix product, and copies in its memory.

A model's share of the matmul rate says how much of the device it uses. Datasheets state
rates that no program reaches, so both are measured, before anything else.
"""

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imagepiece_jax.benchmark import device
from imagepiece_jax.common import timer

# Sides of the square products tried (the fastest counts), and bytes of the copied
# array: more than any cache holds.
SIDES = {"cpu": (1024, 2048)}
OTHER_SIDES = (4096, 8192, 16384)
COPIED = {"cpu": 2**27}
OTHER_COPIED = 2**30
INPUTS = 4  # different ones, in rotation


class PeakRates(NamedTuple):
    """FLOP/s of a matmul (2 per multiply-add); bytes/s of a copy, read and written."""

    matmul: float
    copy: float


def measure(dtype: str, rules: timer.Rules, sides=None, copied=None) -> PeakRates:
    """Return the PeakRates of the default device for random arrays of `dtype`.

    `rules` are the timer's; `sides` and `copied` [bytes] replace the default sizes.
    """
    platform = device.platform()
    sides = sides or SIDES.get(platform, OTHER_SIDES)
    copied = copied or COPIED.get(platform, OTHER_COPIED)
    rates = [2 * side**3 / _matmul(side, dtype, rules) for side in sides]
    return PeakRates(max(rates), 2 * copied / _copy(copied, rules))


def _matmul(side, dtype, rules):
    """Return the median seconds of a product of two square matrices."""
    inputs = [_normal(i, (side, side), dtype) for i in range(INPUTS + 1)]
    product = jax.jit(jnp.dot)
    return _seconds(lambda i: product(inputs[i % INPUTS], inputs[-1]), rules)


def _copy(size, rules):
    """Return the median seconds of reading `size` bytes and writing as many."""
    inputs = [_normal(i, (size // 4,), "float32") for i in range(2)]
    negative = jax.jit(jnp.negative)
    return _seconds(lambda i: negative(inputs[i % 2]), rules)


def _normal(seed, shape, dtype):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def _seconds(call, rules):
    readings = timer.measure({"": timer.job(call)}, rules)
    return statistics.median(readings[""])
