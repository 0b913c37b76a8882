"""Memory layouts of token arrays that spare a GPU copies; no value changes."""

import jax

from imagepiece_jax.kernels.choice import is_reference


def rows(x):
    """Join batch and tokens. [B, N, D] -> [B N, D]."""
    # XLA does not change the layout of a matrix. For [B, N, D] it may choose layouts
    # with the batch innermost, and then transposes whole arrays in the backward pass.
    return x.reshape(-1, x.shape[-1])


def token_major(x):
    """Return x [B, N, D]; its gradient keeps the memory layout [B, N, D]."""
    # XLA would otherwise move the batch innermost, for the positions' gradient, and
    # transpose whole arrays.
    return x if is_reference() else _token_major(x)


@jax.custom_vjp
def _token_major(x):
    return x


def _token_major_backward(_, gradient):
    matrix = jax.lax.optimization_barrier(rows(gradient))
    return (matrix.reshape(gradient.shape),)


_token_major.defvjp(lambda x: (x, None), _token_major_backward)
