"""Values and gradients of a function for random arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import tiny_vit


def draw_normal(*shape, seed=0, dtype="float32"):
    values = np.random.default_rng(seed).normal(size=shape)
    return values.astype(np.float32).astype(jnp.dtype(dtype))


def pull_back(fn, context, *arrays):
    """Value and gradients of `fn`, traced in a context, for one random gradient."""

    def run(*arrays):
        with context():
            out, pull = jax.vjp(fn, *arrays)
            return out, pull(draw_normal(*out.shape, seed=9).astype(out.dtype))

    return tiny_vit.compiled(run)(*arrays)
