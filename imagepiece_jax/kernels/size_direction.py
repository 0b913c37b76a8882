"""The size direction: proportional attention without a bias matrix.

Proportional attention adds log(size) to the logits, by definition as a key bias. As a
bias matrix that costs a GPU as much again as attention itself. Instead, every head
gives up the direction its logits use least, and its keys carry log(size) there.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagepiece_jax.kernels.array_shapes import TokenHeads, TokenValues
from imagepiece_jax.kernels.forms import uses_fast_forms

HeadMoments = Float[Array, "heads head_dim head_dim"]
Moments = Float[np.ndarray, "*heads head_dim head_dim"]
Directions = Float[np.ndarray, "heads head_dim"]
SIZE_ENCODINGS = ("bias", "direction")
QUERY_SCALE = 4.0  # every query's component along its head's size direction
CLASS_SHARE = 0.5  # the class token's weight in C_q: its row decides
NUM_STARTS = 3  # smallest eigenvectors of C_q + C_k from which the descent starts
FIRST_TURNS = 20  # turns for every start
FURTHER_TURNS = 100  # further turns, at most, for the best start
SETTLED_MARGIN = 1e-12  # a direction has settled at a cosine above 1 - SETTLED_MARGIN
TRACE_FLOOR = 1e-9  # added share of the trace, below the precision of float32 sums


def add_sizes(
    key: TokenHeads, log_size: TokenValues, direction: Float[Array, "heads head_dim"]
) -> TokenHeads:
    """Move keys along the size directions, which adds log_size to their logits.

    key: orthogonal to the directions
    """
    # Along its direction every query is QUERY_SCALE (`remove_size_directions`). The
    # factor cancels that and attention's division by sqrt(d).
    factor = key.shape[-1] ** 0.5 / QUERY_SCALE
    scaled_direction = factor * direction.astype(jnp.float32)[None, None]
    if uses_fast_forms(key):
        # In the keys' type and with flat heads, [batch, tokens, heads * head_dim], the
        # addition fuses into the matrix product before it.
        flat_shift = log_size[:, :, None] * scaled_direction.reshape(1, 1, -1)
        flat_key = key.reshape(flat_shift.shape) + flat_shift.astype(key.dtype)
        return flat_key.reshape(key.shape)
    key_shift = log_size[:, :, None, None] * scaled_direction  # of the key's shape
    return (key.astype(jnp.float32) + key_shift).astype(key.dtype)


def remove_size_directions(
    attention_params: Mapping[str, Any], u: Directions
) -> dict[str, Any]:
    """Remove size directions from an Attention's query and key parameters.

    u: float32 unit vectors; zeros leave the logits as they are
    """
    # With P = I - u u^T and a = QUERY_SCALE, the projections become W_q P, b_q P + a u
    # and W_k P, b_k P. Attention turns the key of a token of size s_j into
    # k_j + sqrt(d) / a log(s_j) u. Then q k_j / sqrt(d) loses its part along u and
    # gains log(s_j). The head width and the kernel stay the same. Training would fill
    # the direction again, so the result is for inference.
    params = dict(attention_params)
    query_params = {name: _project_out(value, u) for name, value in params["q"].items()}
    no_bias = np.zeros(u.size, np.float32)  # u: [heads, head_dim]
    query_bias = query_params.get("bias", no_bias)
    params["q"] = query_params | {"bias": query_bias + QUERY_SCALE * u.reshape(-1)}
    key_params = params["k"]
    # Reducers compare the mean key over heads as it was before. A further product
    # computes it, of the tokens with the heads' mean weights: [embed_dim, head_dim].
    head_kernels = np.asarray(key_params["kernel"], np.float32).reshape(-1, *u.shape)
    params["mean_key"] = np.mean(head_kernels, axis=1)
    key_bias = np.asarray(key_params.get("bias", no_bias))
    params["mean_key_bias"] = np.mean(key_bias.reshape(u.shape), axis=0)
    params["k"] = {name: _project_out(value, u) for name, value in key_params.items()}
    params["size_direction"] = u
    return params


def _project_out(param, u):
    """Multiply by P = I - u u^T in float64, head by head; the result is float32."""
    # A kernel [embed_dim, heads * head_dim] or a bias [heads * head_dim]
    head_values = np.asarray(param, np.float64).reshape(*param.shape[:-1], *u.shape)
    components = np.sum(head_values * u, axis=-1, keepdims=True)
    return (head_values - components * u).reshape(param.shape).astype(np.float32)


def second_moments(
    query: TokenHeads, key: TokenHeads, has_class_token: bool
) -> tuple[HeadMoments, HeadMoments]:
    """Compute C_q, the mean of q q^T, and C_k, the key covariance within an image.

    has_class_token: whether the first token is a class token, of weight CLASS_SHARE
    """
    batch_size, num_tokens = query.shape[:2]
    token_weights = jnp.full(num_tokens, 1 / num_tokens)
    if has_class_token:
        rest_weight = (1 - CLASS_SHARE) / (num_tokens - 1)
        token_weights = jnp.full(num_tokens, rest_weight).at[0].set(CLASS_SHARE)
    query_sums = jnp.einsum("bnhd,bnhe,n->hde", query, query, token_weights)
    query_moments = query_sums / batch_size
    # A vector shared by all keys of an image shifts the logits of a query alike, which
    # the softmax ignores. So the keys' covariance counts, not their second moment.
    centered_key = key - jnp.mean(key, axis=1, keepdims=True)
    key_sums = jnp.einsum("bnhd,bnhe->hde", centered_key, centered_key)
    return query_moments, key_sums / (batch_size * num_tokens)


def least_used_direction(
    query_moments: Moments, key_moments: Moments
) -> Float[np.ndarray, "*heads head_dim"]:
    """Minimize (u^T C_q u) (u^T C_k u) over unit vectors u."""
    # The product is the mean square of the logits' loss when queries and keys lose
    # their part along u. An oblique projection (one vector for queries, another for
    # keys) loses a quarter less mean square, but comes no closer to the dense model.
    #
    # u is an eigenvector of C_q / (u^T C_q u) + C_k / (u^T C_k u), the one with the
    # smallest eigenvalue. A turn multiplies u by this matrix's inverse, which never
    # makes the product larger (AM-GM) and takes a fraction of an eigendecomposition's
    # time. Only the best start is continued.
    query_moments = _normalize_moments(query_moments)
    key_moments = _normalize_moments(key_moments)
    starts = [  # eigh sorts by rising eigenvalue, so the first are the smallest
        np.linalg.eigh(query_moments + key_moments)[1][..., :NUM_STARTS],
        np.linalg.eigh(query_moments)[1][..., :1],
        np.linalg.eigh(key_moments)[1][..., :1],
    ]
    # Eigenvectors are columns; from here on, vectors are [*heads, starts, head_dim].
    vectors = np.swapaxes(np.concatenate(starts, axis=-1), -1, -2)
    vectors = _turn_vectors(vectors, query_moments, key_moments, FIRST_TURNS)
    query_loss = _quadratic_form(vectors, query_moments)
    losses = query_loss * _quadratic_form(vectors, key_moments)
    best_index = np.argmin(losses, axis=-1)[..., None, None]
    best_vector = np.take_along_axis(vectors, best_index, axis=-2)  # [*heads, 1, dim]
    best_vector = _turn_vectors(best_vector, query_moments, key_moments, FURTHER_TURNS)
    return best_vector[..., 0, :]


def _turn_vectors(vectors, query_moments, key_moments, max_turns):
    """Turn unit vectors up to `max_turns` times; stop once all settle.

    vectors: [*heads, starts, head_dim]
    query_moments, key_moments: [*heads, head_dim, head_dim]
    """
    for _ in range(max_turns):
        previous = vectors
        query_forms = _quadratic_form(vectors, query_moments)[..., None, None]
        key_forms = _quadratic_form(vectors, key_moments)[..., None, None]
        matrix = query_moments[..., None, :, :] / query_forms
        matrix = matrix + key_moments[..., None, :, :] / key_forms
        solutions = np.linalg.solve(matrix, vectors[..., None])[..., 0]
        vectors = solutions / np.linalg.norm(solutions, axis=-1, keepdims=True)
        cosines = np.sum(previous * vectors, axis=-1)
        if np.all(cosines > 1 - SETTLED_MARGIN):
            break
    return vectors


def _quadratic_form(vectors, moments):
    """Compute u^T C u."""
    return np.einsum("...sd,...de,...se->...s", vectors, moments, vectors)


def _normalize_moments(moments):
    """Scale second moments to trace 1 and make them positive definite."""
    # A head of zeros, such as a pruned head, gets equal moments in every direction.
    moments = np.asarray(moments, np.float64)  # [*heads, head_dim, head_dim]
    trace = np.trace(moments, axis1=-2, axis2=-1)[..., None, None]
    normalized_moments = moments / np.where(trace > 0, trace, 1)
    return normalized_moments + TRACE_FLOOR * np.eye(moments.shape[-1])
