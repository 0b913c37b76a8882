"""Array code that all reductions share: ordering by counting, choosing, comparing.

Nothing here sorts, scatters or accumulates along an axis: comparisons are counted, in
one kernel. One pass is one kernel on a GPU, where starting them costs most.
"""

import chex
import jax
import jax.numpy as jnp

from imagepiece_jax.common.nodes import node


def order_key(score):
    """int32 keys in the order of a float `score`, equal where it is; a NaN comes last.

    Integers compare in one operation where floats with ties and NaN take several.
    """
    bits = jax.lax.bitcast_convert_type(score.astype(jnp.float32), jnp.int32)
    infinity = 0x7F800000
    magnitude = bits & 0x7FFFFFFF
    # Negative floats ascend as their bits descend; both zeros become 0.
    key = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > infinity, -infinity, key)


@node
def rank(score):
    """Place of each token by falling score, ties to the lower index. -> [B, n] int32.

    score: [B, n] float, where a NaN counts as minus infinity, or keys of `order_key`
    """
    chex.assert_rank(score, 2)
    key = score if jnp.issubdtype(score.dtype, jnp.integer) else order_key(score)
    mine, other = _indices(score)
    # Integers: other > mine, or equal and earlier, is one comparison.
    before = key[:, None, :] >= key[:, :, None] + (other >= mine).astype(jnp.int32)
    return jnp.sum(before, axis=-1, dtype=jnp.int32)


def _indices(values):
    """Index of both tokens of every pair: [B, n] -> [B, n, n] int32 twice."""
    shape = values.shape + values.shape[-1:]
    return (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))


@node
def place_among(keep):
    """Place of each kept token among the kept, negative for others. [B, n] -> int32."""
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    # Its own term makes the sum of a token that is not kept negative: one pass.
    penalty = jnp.where((other == mine) & ~keep[:, None, :], -keep.shape[1], 0)
    earlier = (keep[:, None, :] & (other < mine)).astype(jnp.int32)
    return jnp.sum(earlier + penalty, axis=-1, dtype=jnp.int32)


@node
def count_before(keep):
    """How many kept tokens come before each token. [B, n] bool -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    return jnp.sum(keep[:, None, :] & (other < mine), axis=-1, dtype=jnp.int32)


@node
def invert(position, wanted):
    """The index that holds each wanted position. -> [B, m] int32.

    position: [B, n] int, distinct where they are wanted: a position that no index holds
    gives 0, one that several hold their sum
    wanted: a length, for the positions 0..length-1, or [m] positions
    """
    chex.assert_rank(position, 2)
    wanted = jnp.arange(wanted) if isinstance(wanted, int) else jnp.asarray(wanted)
    index = jnp.arange(position.shape[1], dtype=jnp.int32)[None, None, :]
    holds = position[:, None, :] == wanted.astype(jnp.int32)[None, :, None]
    return jnp.sum(jnp.where(holds, index, 0), axis=-1, dtype=jnp.int32)


@node
def pick(position, length, *values):
    """The values at `invert(position, length)`, in one pass.

    position: [B, n] int, as for `invert`
    values: [B, n] int32 each
    Returns [B, length] int32 for each of the values.
    """
    # Else XLA works out all positions again for every one that is wanted.
    position = jax.lax.optimization_barrier(position)
    wanted = jnp.arange(length, dtype=jnp.int32)[None, :, None]
    holds = position[:, None, :] == wanted
    taken = tuple(jnp.where(holds, value[:, None, :], 0) for value in values)
    return sums(taken, axis=2)


@node
def sums(values, axis):
    """Sums of several int32 arrays of one shape along an axis, in one pass."""

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    return jax.lax.reduce(values, (jnp.int32(0),) * len(values), add, (axis,))


def largest(key, order, payload):
    """Largest key of each row, its order and its payload, in one pass instead of two.

    key, order, payload: [..., n] int32; of equal keys the smallest order counts
    """

    def better(a, b):
        first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
        return tuple(jnp.where(first, x, y) for x, y in zip(a, b, strict=True))

    start = (jnp.int32(-(2**31)), jnp.int32(2**31 - 1), jnp.int32(0))
    return jax.lax.reduce((key, order, payload), start, better, (key.ndim - 1,))


def smallest(values, k):
    """Mark the k smallest of each row, by k passes, ties to the lower index."""
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    marked = jnp.zeros(values.shape, bool)
    for _ in range(min(k, values.shape[-1])):
        rest = jnp.where(marked, jnp.inf, values)
        nearest = jnp.argmin(rest, axis=-1).astype(jnp.int32)
        marked |= index == nearest[..., None]
    return marked


def squared_distances(x):
    """Squared distances of all pairs of tokens. [B, n, D] float32 -> [B, n, n].

    Summed from differences: |a|^2 + |b|^2 - 2 a.b is noise for nearly equal tokens. XLA
    builds no array of the differences, as long as they are used once. What float32
    cannot hold counts as its largest number.
    """
    squares = jnp.sum((x[:, :, None] - x[:, None]) ** 2, axis=-1)
    most = jnp.finfo(jnp.float32).max
    return jnp.where(squares < most, squares, most)


def alternate(first, second):
    """Interleave [B, ceil(n / 2)] and [B, n // 2] -> [B, n], `first` at even places."""
    batch, half = first.shape
    n = half + second.shape[1]
    second = jnp.pad(second, ((0, 0), (0, half - second.shape[1])))
    return jnp.stack([first, second], axis=-1).reshape(batch, 2 * half)[:, :n]


@node
def gather_rows(x, index):
    """Rows of each image: [B, n, ...] and an index [B, ...] in [0, n) of them.

    Returns [B, ..., ...]: the shape of the index, then that of a row.
    """
    batch, n = x.shape[:2]
    # Rows of one matrix: an index of (image, row) would be an array of its own.
    start = n * jnp.arange(batch, dtype=index.dtype)
    index = index + start.reshape(batch, *(1,) * (index.ndim - 1))
    flat = x.reshape(batch * n, *x.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")


def cosine_within(x, eps=1e-6):
    """Cosine similarities of all pairs, in float32. [B, n, d] -> [B, n, n].

    For a few rows: their lengths are read off the diagonal of one product.
    """
    chex.assert_rank(x, 3)
    x = x.astype(jnp.float32)
    product = jnp.einsum("bnd,bmd->bnm", x, x, precision="highest")
    # The batch of an exported program is a symbol, which has no len().
    flat = product.reshape(product.shape[0], -1)
    scale = jax.lax.rsqrt(flat[:, :: x.shape[1] + 1] + eps)  # of the diagonal
    return product * scale[:, :, None] * scale[:, None, :]


def cosine(a, b, eps=1e-6):
    """Cosine similarities in float32. [B, n, d], [B, m, d] -> [B, n, m]."""
    chex.assert_rank([a, b], 3)
    pair = unit(a, eps), unit(b, eps)
    return jnp.einsum("bnd,bmd->bnm", *pair, precision="highest")


@node
def unit(x, eps=1e-6):
    """Vectors of the last axis at length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps)


def lengths(x):
    """Lengths of vectors of the last axis, in float32, with a gradient at zero too."""
    return jnp.sqrt(jnp.sum(x.astype(jnp.float32) ** 2, axis=-1) + 1e-12)


def shift_shares(change, live=None):
    """How far a layer moves each token, as shares of the live ones. -> [B, n] float32.

    change: [B, n, D], what the layer adds to them
    live: [B, n], 1 for the tokens that count and 0 for others; None: all count
    Source: Choi et al. 2025 (Representation Shift, by the L2 distance).
    """
    moved = lengths(change)
    moved = moved if live is None else moved * live
    return moved / jnp.maximum(jnp.sum(moved, axis=1, keepdims=True), 1e-6)


@node
def class_attention(query, key, key_bias=None):
    """Attention of the class token to every token, mean over heads.

    query: [B, H, d] of the class token
    key: [B, N, H, d]
    key_bias: [B, N], added to the logits
    Returns [B, N] float32. The softmax runs over all N columns, the class token's too:
    callers drop those that they do not rank.
    """
    query = query.astype(jnp.float32)
    key = key.astype(jnp.float32)
    logits = jnp.sum(query[:, None] * key, axis=-1) * query.shape[-1] ** -0.5
    return attention_row(logits, key_bias)


def attention_row(logits, key_bias=None):
    """Attention of one query, mean over heads. [B, N, H], [B, N] float32 -> [B, N]."""
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    weights = jnp.exp(logits - log_sum_exp(logits)[:, None, :])
    return jnp.mean(weights, axis=2)


@jax.custom_jvp
def log_sum_exp(logits):
    """log of the sum over axis 1 of exp: [B, N, H] float32 -> [B, H], in one pass."""
    # Not minus infinity, whose difference with itself is NaN: e^-1e30 is 0 as well.
    logits = jnp.maximum(logits, -1e30)

    def join(a, b):
        top = jnp.maximum(a[0], b[0])
        return top, a[1] * jnp.exp(a[0] - top) + b[1] * jnp.exp(b[0] - top)

    start = (jnp.float32(-1e30), jnp.float32(0))
    top, total = jax.lax.reduce((logits, jnp.ones_like(logits)), start, join, (1,))
    return top + jnp.log(total)


@log_sum_exp.defjvp
def _log_sum_exp_jvp(primals, tangents):
    (logits,), (tangent,) = primals, tangents
    out = log_sum_exp(logits)
    return out, jnp.sum(jnp.exp(logits - out[:, None]) * tangent, axis=1)


log_sum_exp = node(log_sum_exp)


def uniqueness(key, margin, live=None):
    """Shares of 1 - E, where E is PiToMe's energy of a token. -> [B, n] float32.

    E is the mean over all tokens, itself included, of ELU(cosine - margin): high, and
    at most 1, for one of many that are alike.

    key: [B, n, d], means over heads
    live: [B, n], 1 for the tokens that count and 0 for others; None: all count
    Source: Tran et al. 2024, section 3.2.
    """
    alike = jax.nn.elu(cosine(key, key) - margin)
    live = jnp.ones(key.shape[:2], jnp.float32) if live is None else live
    total = jnp.maximum(jnp.sum(live, axis=1, keepdims=True), 1.0)
    unlike = (1 - jnp.sum(alike * live[:, None, :], axis=2) / total) * live
    return unlike / jnp.maximum(jnp.sum(unlike, axis=1, keepdims=True), 1e-6)
