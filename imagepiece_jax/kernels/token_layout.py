"""Memory layouts of token arrays that spare a GPU copies; no value changes."""

import jax
import jax.numpy as jnp

from imagepiece_jax.kernels.choice import is_reference


def flatten_tokens(x):
    """Join batch and tokens. [B, N, D] -> [B N, D]."""
    # XLA does not change the layout of a matrix. For [B, N, D] it may choose layouts
    # with the batch innermost, and then transposes whole arrays in the backward pass.
    return x.reshape(-1, x.shape[-1])


def call_on_rows(layer, x):
    """layer(x) for a layer of single tokens. [B, N, D] -> [B, N, D]."""
    return layer(flatten_tokens(x)).reshape(x.shape)


def add_branch(x, branch, factor=None):
    """x + branch * factor, for x [B, N, D] and drop path's factor [B] or None.

    branch: [B, N, D] or [B N, D]
    """
    branch = flatten_tokens(branch)
    if factor is not None:
        factor = factor.astype(branch.dtype)[:, None]
        factor = jnp.broadcast_to(factor, x.shape[:2]).reshape(-1, 1)
        branch = branch * factor
    return (flatten_tokens(x) + branch).reshape(x.shape)


def keep_token_major(x):
    """Return x [B, N, D]; its gradient keeps the memory layout [B, N, D]."""
    # XLA would otherwise move the batch innermost, for the positions' gradient, and
    # transpose whole arrays.
    return x if is_reference() else _keep_token_major(x)


@jax.custom_vjp
def _keep_token_major(x):
    return x


def _keep_token_major_backward(_, gradient):
    matrix = jax.lax.optimization_barrier(flatten_tokens(gradient))
    return (matrix.reshape(gradient.shape),)


_keep_token_major.defvjp(lambda x: (x, None), _keep_token_major_backward)
