"""Similarities and distances of tokens, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagepiece_jax.kernels import forms
from imagepiece_jax.kernels.array_shapes import AllRows, TokenPairs, TokenRows


def unit_vectors(
    x: Float[Array, "*rows dim"], eps: float = 1e-6
) -> Float[Array, "*rows dim"]:
    """Scale vectors along the last axis to length 1, in float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(squares + eps)


def dot_products(
    a: Float[Array, "batch rows dim"], b: Float[Array, "batch columns dim"]
) -> Float[Array, "batch rows columns"]:
    """Dot products of all row pairs, in float32."""
    a = a.astype(jnp.float32)
    b = b.astype(jnp.float32)
    return jnp.einsum("bnd,bmd->bnm", a, b, precision="highest")


def cosine_similarity(
    a: Float[Array, "batch rows dim"],
    b: Float[Array, "batch columns dim"] | None = None,
    eps: float = 1e-6,
) -> Float[Array, "batch rows columns_of_b"]:
    """Cosine similarities of all row pairs, in float32.

    b: None: all pairs of `a`
    """
    if b is not None:
        return dot_products(unit_vectors(a, eps), unit_vectors(b, eps))
    if forms.uses_reference_forms():
        return dot_products(unit_vectors(a, eps), unit_vectors(a, eps))
    # One product has squared lengths on its diagonal, every (n + 1)-th entry. Two-byte
    # values are operands without conversion: their products are exact in float32.
    precision = "highest" if a.dtype.itemsize > 2 else None
    product = jnp.einsum(  # [batch, rows, rows]
        "bnd,bmd->bnm", a, a, precision=precision, preferred_element_type=jnp.float32
    )
    # The batch of an exported program is a symbol, which has no len().
    flat_product = product.reshape(a.shape[0], -1)
    inverse_lengths = jax.lax.rsqrt(flat_product[:, :: a.shape[1] + 1] + eps)
    return product * inverse_lengths[:, :, None] * inverse_lengths[:, None, :]


def all_cosines(x: TokenRows, all_x: AllRows | None = None) -> TokenPairs:
    """Cosines of all image tokens, without a gradient.

    all_x: the same tokens with the prefix in front; None: x alone
    """
    x = jax.lax.stop_gradient(x)
    if not forms.uses_fast_forms(x) or all_x is None:
        unit_x = unit_vectors(x)
        return dot_products(unit_x, unit_x)
    # For a product with a slice of an array, a GPU would copy the slice.
    num_tokens = x.shape[1]
    cosines = cosine_similarity(jax.lax.stop_gradient(all_x))  # with the prefix, first
    return cosines[:, -num_tokens:, -num_tokens:]


def side_cosines(
    metric: Float[Array, "batch tokens metric_dim"],
    first_token: int,
    x: TokenRows,
    all_metric: Float[Array, "batch all_tokens metric_dim"] | None = None,
) -> Float[Array, "batch side_a side_b"]:
    """Cosines between first_token, first_token + 2, .. and the rest of the tokens.

    all_metric: metric behind the prefix; None: metric alone
    """
    if not forms.is_latency_bound(x):
        # Scaling all tokens at once is one GPU kernel; two sides need several.
        unit = unit_vectors(metric)
        return dot_products(unit[:, first_token::2], unit[:, 1 - first_token :: 2])
    num_tokens = x.shape[1]
    cosines = cosine_similarity(metric if all_metric is None else all_metric)
    image_cosines = cosines[:, -num_tokens:, -num_tokens:]  # the prefix is first
    return image_cosines[:, first_token::2, 1 - first_token :: 2]


def squared_distances(x: TokenRows) -> TokenPairs:
    """Squared distances of all token pairs.

    Distances beyond float32 become its largest number.
    """
    # Squares of differences are summed, because |a|^2 + |b|^2 - 2 a.b is noise for
    # nearly equal tokens. XLA stores no differences as long as they are used only once.
    difference = x[:, :, None] - x[:, None]  # [batch, tokens, tokens, dim]
    distances = jnp.sum(difference**2, axis=-1)
    largest_float = jnp.finfo(jnp.float32).max
    return jnp.where(distances < largest_float, distances, largest_float)


def vector_lengths(x: Float[Array, "*rows dim"]) -> Float[Array, " *rows"]:
    """Vector lengths along the last axis, in float32, with a finite gradient at 0."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x**2, axis=-1)
    return jnp.sqrt(squares + 1e-12)
