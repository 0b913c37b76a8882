"""Memory layouts of token arrays that spare a GPU copies; no value changes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagepiece_jax.kernels.array_shapes import TokenRows
from imagepiece_jax.kernels.forms import uses_reference_forms


def flatten_tokens(x: Float[Array, "*tokens dim"]) -> Float[Array, "*rows dim"]:
    """Join batch and tokens, if the batch size is known."""
    return x.reshape(*row_shape(x), x.shape[-1])


def row_shape(x: Float[Array, "batch tokens ..."]) -> tuple:
    """The axes of an array's rows: one for all, or batch and tokens."""
    # XLA does not change the layout of a matrix. For [B, N, D] it may choose layouts
    # with the batch innermost, and then transposes whole arrays in the backward pass.
    if isinstance(x.shape[0], int):
        return (-1,)
    # An exported graph for any batch size: in int8, OpenVINO (2026.4) fails to move a
    # scale per channel from a matrix of batch * tokens rows through the reshape.
    return x.shape[:2]


def call_on_rows(layer: Callable[[jax.Array], jax.Array], x: TokenRows) -> TokenRows:
    """layer(x) for a layer of single tokens."""
    return layer(flatten_tokens(x)).reshape(x.shape)


def add_branch(
    x: TokenRows,
    branch: TokenRows | Float[Array, "rows dim"],
    factor: Float[Array, " batch"] | None = None,
) -> TokenRows:
    """x + branch * factor, with drop path's factor."""
    branch = flatten_tokens(branch)
    if factor is not None:
        image_factor = factor.astype(branch.dtype)[:, None]
        row_factor = jnp.broadcast_to(image_factor, x.shape[:2]).reshape(-1, 1)
        branch = branch * row_factor
    return (flatten_tokens(x) + branch).reshape(x.shape)


def keep_token_major(x: TokenRows) -> TokenRows:
    """Return x; its gradient keeps the memory layout [batch, tokens, dim]."""
    # XLA would otherwise move the batch innermost, for the positions' gradient, and
    # transpose whole arrays.
    return x if uses_reference_forms() else _keep_token_major(x)


@jax.custom_vjp
def _keep_token_major(x):
    return x


def _keep_token_major_backward(_, gradient):
    matrix = jax.lax.optimization_barrier(flatten_tokens(gradient))
    return (matrix.reshape(gradient.shape),)


_keep_token_major.defvjp(lambda x: (x, None), _keep_token_major_backward)
