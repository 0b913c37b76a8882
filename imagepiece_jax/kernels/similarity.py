"""Similarities and distances of tokens, in float32."""

import chex
import jax
import jax.numpy as jnp

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.choice import is_fast, is_latency_bound, is_reference


@onnx_op
def unit_vectors(x, eps=1e-6):
    """Scale vectors along the last axis to length 1, in float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(squares + eps)


def dot_products(a, b):
    """Dot products of all row pairs, in float32. [B, n, d], [B, m, d] -> [B, n, m]."""
    a = a.astype(jnp.float32)
    b = b.astype(jnp.float32)
    return jnp.einsum("bnd,bmd->bnm", a, b, precision="highest")


def cosine_similarity(a, b=None, eps=1e-6):
    """Cosine similarities in float32. [B, n, d], [B, m, d] -> [B, n, m].

    b: None: all pairs of `a`
    """
    chex.assert_rank(a, 3)
    if b is not None:
        return dot_products(unit_vectors(a, eps), unit_vectors(b, eps))
    if is_reference():
        return dot_products(unit_vectors(a, eps), unit_vectors(a, eps))
    # One product has squared lengths on its diagonal. Two-byte values are operands
    # without conversion, because their products are exact in float32.
    precision = "highest" if a.dtype.itemsize > 2 else None
    product = jnp.einsum(
        "bnd,bmd->bnm", a, a, precision=precision, preferred_element_type=jnp.float32
    )
    # The batch of an exported program is a symbol, which has no len().
    flat = product.reshape(a.shape[0], -1)
    scale = jax.lax.rsqrt(flat[:, :: a.shape[1] + 1] + eps)
    return product * scale[:, :, None] * scale[:, None, :]


def all_cosines(x, all_x=None):
    """Cosines of all image tokens, without a gradient. [B, n, D] -> [B, n, n] float32.

    all_x: [B, prefix + n, D], x behind the prefix; None: x alone
    """
    x = jax.lax.stop_gradient(x)
    if not is_fast(x) or all_x is None:
        x = unit_vectors(x)
        return dot_products(x, x)
    # For a product with a slice of an array, a GPU would copy the slice.
    n = x.shape[1]
    return cosine_similarity(jax.lax.stop_gradient(all_x))[:, -n:, -n:]


def side_cosines(metric, first, x, all_metric=None):
    """Cosines between the tokens first, first + 2, .. and the rest. -> [B, a, b].

    metric, x: [B, n, ..], the feature to compare, and the tokens
    all_metric: [B, prefix + n, d], metric behind the prefix; None: metric alone
    """
    if not is_latency_bound(x):
        # Scaling all tokens at once is one GPU kernel; two sides need several.
        metric = unit_vectors(metric)
        return dot_products(metric[:, first::2], metric[:, 1 - first :: 2])
    if all_metric is not None:
        metric = all_metric
    n = x.shape[1]
    alike = cosine_similarity(metric)[:, -n:, -n:]
    return alike[:, first::2, 1 - first :: 2]


def squared_distances(x):
    """Squared distances of all token pairs. [B, n, D] float32 -> [B, n, n].

    Distances beyond float32 become its largest number.
    """
    # Squares of differences are summed, because |a|^2 + |b|^2 - 2 a.b is noise for
    # nearly equal tokens. XLA stores no differences as long as they are used only once.
    difference = x[:, :, None] - x[:, None]
    squares = jnp.sum(difference**2, axis=-1)
    largest_float = jnp.finfo(jnp.float32).max
    return jnp.where(squares < largest_float, squares, largest_float)


def vector_lengths(x):
    """Vector lengths along the last axis, in float32, with a finite gradient at 0."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x**2, axis=-1)
    return jnp.sqrt(squares + 1e-12)
