"""Shared array functions of reductions: ranking, choosing and comparing tokens.

Nothing here sorts, scatters or accumulates along an axis. Ranks are counted
comparisons: one kernel on a GPU, where starting kernels costs most.
"""

import chex
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.choice import is_fast


def order_key(score):
    """Map float scores to int32 keys with the same order; NaN becomes the lowest."""
    # Integers compare in one operation, floats with ties and NaN in several.
    score = score.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    infinity = 0x7F800000
    magnitude = bits & 0x7FFFFFFF
    # The bits of negative floats descend as the floats ascend; both zeros become 0.
    key = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > infinity, -infinity, key)


@onnx_op
def rank(score):
    """Rank tokens by falling score, ties to the lower index. -> [B, n] int32.

    score: [B, n] float, where NaN counts as minus infinity, or `order_key` keys
    """
    chex.assert_rank(score, 2)
    key = score
    if not jnp.issubdtype(score.dtype, jnp.integer):
        key = order_key(score)
    mine, other = _indices(score)
    # For integers "higher, or equal and earlier" is a single comparison.
    other_key = key[:, None, :]
    own_key = key[:, :, None] + (other >= mine).astype(jnp.int32)
    return jnp.sum(other_key >= own_key, axis=-1, dtype=jnp.int32)


def _indices(values):
    """Indices of both tokens in every pair. [B, n] -> [B, n, n] int32 twice."""
    shape = values.shape + values.shape[-1:]
    mine = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    other = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    return mine, other


@onnx_op
def index_among(keep):
    """Number kept tokens from 0; other tokens are negative. [B, n] -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    # A dropped token adds a penalty to its own sum, in the same pass.
    leaves = (other == mine) & ~keep[:, None, :]
    penalty = jnp.where(leaves, -keep.shape[1], 0)
    earlier = keep[:, None, :] & (other < mine)
    terms = earlier.astype(jnp.int32) + penalty
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


def index_or(keep, otherwise):
    """`index_among` for kept tokens, `otherwise` [B, n] for the rest, in one pass."""
    mine, other = _indices(keep)
    earlier = keep[:, None, :] & (other < mine)
    once = jnp.where(other == 0, otherwise[:, :, None], 0)
    terms = jnp.where(keep[:, :, None], earlier.astype(jnp.int32), once)
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


@onnx_op
def count_before(keep):
    """Count kept tokens before every token. [B, n] bool -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    earlier = keep[:, None, :] & (other < mine)
    return jnp.sum(earlier, axis=-1, dtype=jnp.int32)


@onnx_op
def invert(position, values):
    """Find the index of every wanted value in `position` [B, n]. -> [B, m] int32.

    A missing value gives 0. A repeated value gives the sum of its indices.

    values: [m] values, or a number m for the values 0..m-1
    """
    chex.assert_rank(position, 2)
    if isinstance(values, int):
        values = jnp.arange(values)
    else:
        values = jnp.asarray(values)
    index = jnp.arange(position.shape[1], dtype=jnp.int32)[None, None, :]
    position = position[:, None, :]
    values = values.astype(jnp.int32)[None, :, None]
    indices = jnp.where(position == values, index, 0)
    return jnp.sum(indices, axis=-1, dtype=jnp.int32)


@onnx_op
def pick(position, length, *values):
    """Gather several values [B, n] int32 at `invert(position, length)`, in one pass.

    Returns a tuple of [B, length] int32.
    """
    # Without this barrier XLA recomputes all positions for every wanted index.
    position = jax.lax.optimization_barrier(position)
    ranks = jnp.arange(length, dtype=jnp.int32)[None, :, None]
    holds = position[:, None, :] == ranks
    picked = tuple(jnp.where(holds, value[:, None, :], 0) for value in values)
    return sums(picked, axis=2)


@onnx_op
def sums(values, axis):
    """Sum several arrays along an axis, in one pass."""

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    zeros = tuple(jnp.zeros((), value.dtype) for value in values)
    return jax.lax.reduce(tuple(values), zeros, add, (axis,))


def largest(key, order, payload):
    """Find (largest key, its order, its payload) per row, in one pass.

    All are int32 [..., n]. Of equal keys, the smallest order wins.
    """
    lowest = jnp.int32(-(2**31))
    last = jnp.int32(2**31 - 1)
    start = (lowest, last, jnp.int32(0))
    return jax.lax.reduce((key, order, payload), start, _larger, (key.ndim - 1,))


def most_alike(similarity, payload):
    """Find (highest similarity, its payload) per row, in one pass. -> [B, a] twice.

    similarity: [B, a, t] float32, above -3; NaN never wins
    payload: [B, t] int32 >= 0; of equal similarities, the smallest payload wins
    """
    payload = jnp.broadcast_to(payload[:, None, :], similarity.shape)
    similarity = jnp.where(jnp.isnan(similarity), -3.0, similarity)
    start = (jnp.float32(-3), jnp.int32(0))
    return jax.lax.reduce((similarity, payload), start, _larger, (2,))


def _larger(a, b):
    """Choose the tuple with the larger first entry; on a tie, the smaller second."""
    a_wins = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return tuple(jnp.where(a_wins, x, y) for x, y in zip(a, b, strict=True))


def smallest(values, k):
    """Mark the k smallest values per row, ties to the lower index, in k passes."""
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    marked = jnp.zeros(values.shape, bool)
    for _ in range(min(k, values.shape[-1])):
        unmarked = jnp.where(marked, jnp.inf, values)
        nearest = jnp.argmin(unmarked, axis=-1).astype(jnp.int32)
        marked |= index == nearest[..., None]
    return marked


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


def alternate(first, second):
    """Interleave `first` [B, ceil(n/2)] (even places) and `second`. -> [B, n]."""
    batch, half = first.shape
    n = half + second.shape[1]
    missing = half - second.shape[1]
    second = jnp.pad(second, ((0, 0), (0, missing)))
    pairs = jnp.stack([first, second], axis=-1)
    return pairs.reshape(batch, 2 * half)[:, :n]


@onnx_op
def gather_rows(x, index):
    """Gather rows of x [B, n, ...] at an index [B, ...] in [0, n), image by image.

    Returns [*index.shape, *x.shape[2:]].
    """
    batch, n = x.shape[:2]
    # One matrix of all rows: pairs (image, row) would be one more array in memory.
    start = n * jnp.arange(batch, dtype=index.dtype)
    index = index + start.reshape(batch, *(1,) * (index.ndim - 1))
    flat = x.reshape(batch * n, *x.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")


def cosine(a, b=None, eps=1e-6):
    """Cosine similarities in float32. [B, n, d], [B, m, d] -> [B, n, m].

    b: None: all pairs of `a`
    """
    chex.assert_rank(a, 3)
    if b is not None:
        return products(unit(a, eps), unit(b, eps))
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


def products(a, b):
    """Dot products of all row pairs, in float32. [B, n, d], [B, m, d] -> [B, n, m]."""
    a = a.astype(jnp.float32)
    b = b.astype(jnp.float32)
    return jnp.einsum("bnd,bmd->bnm", a, b, precision="highest")


@onnx_op
def unit(x, eps=1e-6):
    """Scale vectors along the last axis to length 1, in float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(squares + eps)


def lengths(x):
    """Vector lengths along the last axis, in float32, with a finite gradient at 0."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x**2, axis=-1)
    return jnp.sqrt(squares + 1e-12)


def shift_shares(change, live=None):
    """Measure token changes by a layer, as shares with sum 1. -> [B, n] float32.

    change: [B, n, D], added to the tokens by the layer
    live: [B, n], 1 for live tokens and 0 for masked tokens; None: all live
    Source: Choi et al. 2025 (Representation Shift, by the L2 distance).
    """
    moved = lengths(change)
    if live is not None:
        moved = moved * live
    total = jnp.sum(moved, axis=1, keepdims=True)
    return moved / jnp.maximum(total, 1e-6)


@onnx_op
def mean_attention(query, key, key_bias=None):
    """Attention to all N tokens, prefix included. -> [B, N] float32.

    query: [B, Q, H, d], such as the class token's; attention is averaged over queries
        and heads
    key: [B, N, H, d]
    key_bias: [B, N], added to the logits
    """
    in_one_kernel = is_fast(key)
    query = query.astype(jnp.float32)
    key = key.astype(jnp.float32)
    products = jnp.sum(query[:, None] * key[:, :, None], axis=-1)  # [B, N, Q, H]
    logits = products * query.shape[-1] ** -0.5
    logits = logits.reshape(*logits.shape[:2], -1)  # [B, N, Q H]
    if not in_one_kernel:
        return attention_row(logits, key_bias)
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    # A GPU computes a whole softmax in one kernel if tokens are the innermost axis.
    by_head = logits.transpose(0, 2, 1)
    by_head = with_layout_constraint(by_head, Layout((0, 1, 2)))
    return jnp.mean(jax.nn.softmax(by_head, axis=-1), axis=1)


@onnx_op
def mean_query(query, live=None):
    """Average the queries of all tokens, prefix included. -> [B, 1, H, d] float32.

    query: [B, N, H, d]
    live: [B, N], 1 for live tokens and 0 for masked tokens; None: all live
    """
    query = query.astype(jnp.float32)
    if live is None:
        return jnp.mean(query, axis=1)[:, None]
    live = live[:, :, None, None]
    total = jnp.sum(live * query, axis=1, keepdims=True)
    return total / jnp.sum(live, axis=1, keepdims=True)


@onnx_op
def class_and_mean_queries(query, live=None):
    """The class token's query and the mean query. -> [B, 2, H, d] float32.

    query, live: as for `mean_query`
    """
    both = [query[:, :1].astype(jnp.float32), mean_query(query, live)]
    return jnp.concatenate(both, axis=1)


def attention_row(logits, key_bias=None):
    """One query's attention, mean over heads. [B, N, H], [B, N] float32 -> [B, N]."""
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    total = log_sum_exp(logits)[:, None, :]
    weights = jnp.exp(logits - total)
    return jnp.mean(weights, axis=2)


@jax.custom_jvp
def log_sum_exp(logits):
    """log(sum(exp(logits))) over axis 1, in one pass. [B, N, H] float32 -> [B, H]."""
    # -1e30 replaces minus infinity: -inf - (-inf) is NaN.
    logits = jnp.maximum(logits, -1e30)

    def join(a, b):
        top = jnp.maximum(a[0], b[0])
        part_a = a[1] * jnp.exp(a[0] - top)
        part_b = b[1] * jnp.exp(b[0] - top)
        return top, part_a + part_b

    start = (jnp.float32(-1e30), jnp.float32(0))
    values = (logits, jnp.ones_like(logits))
    top, total = jax.lax.reduce(values, start, join, (1,))
    return top + jnp.log(total)


@log_sum_exp.defjvp
def _log_sum_exp_jvp(primals, tangents):
    (logits,) = primals
    (tangent,) = tangents
    out = log_sum_exp(logits)
    weights = jnp.exp(logits - out[:, None])
    return out, jnp.sum(weights * tangent, axis=1)


log_sum_exp = onnx_op(log_sum_exp)


def uniqueness(key, margin, live=None):
    """Score tokens by 1 - energy (PiToMe), as shares with sum 1. -> [B, n] float32.

    key: [B, n, d], means over heads
    live: [B, n], 1 for live tokens and 0 for masked tokens; None: all live
    Source: Tran et al. 2024, section 3.2.
    """
    # Energy is the mean of ELU(cosine - margin) over all tokens: at most 1, and high
    # for a token similar to many tokens.
    alike = jax.nn.elu(cosine(key, key) - margin)
    if live is None:
        live = jnp.ones(key.shape[:2], jnp.float32)
    count = jnp.sum(live, axis=1, keepdims=True)
    count = jnp.maximum(count, 1.0)
    energy = jnp.sum(alike * live[:, None, :], axis=2) / count
    unlike = (1 - energy) * live
    total = jnp.sum(unlike, axis=1, keepdims=True)
    return unlike / jnp.maximum(total, 1e-6)
