"""Whether kernels can be built here, and random inputs of reductions."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.kernels import fused

_LACKING = fused.unsupported_reason("cpu")
needs_compiler = pytest.mark.skipif(_LACKING is not None, reason=f"needs {_LACKING}")


@functools.cache
def random_inputs(seed, batch, n, heads, width, dtype="float32"):
    """(query, key, x, size) of a class token and `n` others, of sizes 1 to 4.

    NumPy's: nothing is compiled for them.
    """
    rng = np.random.default_rng(seed)
    shape = (batch, n + 1, heads, width)
    tokens = (*shape[:2], heads * width)
    arrays = [
        rng.normal(size=s).astype(jnp.dtype(dtype)) for s in (shape, shape, tokens)
    ]
    return *arrays, np.float32(rng.integers(1, 5, shape[:2]))
