"""Random inputs of reductions, of NumPy: nothing is compiled for them."""

import functools

import jax.numpy as jnp
import numpy as np


@functools.cache
def random_inputs(seed, batch, n, heads, width, dtype="float32"):
    """(query, key, x, size) of a class token and `n` others, of sizes 1 to 4."""
    rng = np.random.default_rng(seed)
    shape = (batch, n + 1, heads, width)
    tokens = (*shape[:2], heads * width)
    arrays = [
        rng.normal(size=s).astype(jnp.dtype(dtype)) for s in (shape, shape, tokens)
    ]
    return *arrays, np.float32(rng.integers(1, 5, shape[:2]))
