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
    score = score.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
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
    key = score
    if not jnp.issubdtype(score.dtype, jnp.integer):
        key = order_key(score)
    mine, other = _indices(score)
    # Integers: other > mine, or equal and earlier, is one comparison.
    other_key = key[:, None, :]
    own_key = key[:, :, None] + (other >= mine).astype(jnp.int32)
    return jnp.sum(other_key >= own_key, axis=-1, dtype=jnp.int32)


def _indices(values):
    """Index of both tokens of every pair: [B, n] -> [B, n, n] int32 twice."""
    shape = values.shape + values.shape[-1:]
    mine = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    other = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    return mine, other


@node
def place_among(keep):
    """Place of each kept token among the kept, negative for others. [B, n] -> int32."""
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    # Its own term makes the sum of a token that is not kept negative: one pass.
    leaves = (other == mine) & ~keep[:, None, :]
    penalty = jnp.where(leaves, -keep.shape[1], 0)
    earlier = keep[:, None, :] & (other < mine)
    terms = earlier.astype(jnp.int32) + penalty
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


@node
def count_before(keep):
    """How many kept tokens come before each token. [B, n] bool -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    earlier = keep[:, None, :] & (other < mine)
    return jnp.sum(earlier, axis=-1, dtype=jnp.int32)


@node
def invert(position, wanted):
    """The index that holds each wanted position. -> [B, m] int32.

    A position that no index holds gives 0, and one that several hold gives their sum.

    position: [B, n] int, the position that each index holds
    wanted: a length, for the positions 0..length-1, or [m] positions
    """
    chex.assert_rank(position, 2)
    if isinstance(wanted, int):
        wanted = jnp.arange(wanted)
    else:
        wanted = jnp.asarray(wanted)
    index = jnp.arange(position.shape[1], dtype=jnp.int32)[None, None, :]
    position = position[:, None, :]
    wanted = wanted.astype(jnp.int32)[None, :, None]
    taken = jnp.where(position == wanted, index, 0)
    return jnp.sum(taken, axis=-1, dtype=jnp.int32)


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
        a_wins = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
        return tuple(jnp.where(a_wins, x, y) for x, y in zip(a, b, strict=True))

    lowest = jnp.int32(-(2**31))
    last = jnp.int32(2**31 - 1)
    start = (lowest, last, jnp.int32(0))
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
    difference = x[:, :, None] - x[:, None]
    squares = jnp.sum(difference**2, axis=-1)
    largest_float = jnp.finfo(jnp.float32).max
    return jnp.where(squares < largest_float, squares, largest_float)


def alternate(first, second):
    """Interleave [B, ceil(n / 2)] and [B, n // 2] -> [B, n], `first` at even places."""
    batch, half = first.shape
    n = half + second.shape[1]
    missing = half - second.shape[1]
    second = jnp.pad(second, ((0, 0), (0, missing)))
    pairs = jnp.stack([first, second], axis=-1)
    return pairs.reshape(batch, 2 * half)[:, :n]


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
    diagonal = flat[:, :: x.shape[1] + 1]
    scale = jax.lax.rsqrt(diagonal + eps)
    return product * scale[:, :, None] * scale[:, None, :]


def cosine(a, b, eps=1e-6):
    """Cosine similarities in float32. [B, n, d], [B, m, d] -> [B, n, m]."""
    chex.assert_rank([a, b], 3)
    a = unit(a, eps)
    b = unit(b, eps)
    return jnp.einsum("bnd,bmd->bnm", a, b, precision="highest")


@node
def unit(x, eps=1e-6):
    """Vectors of the last axis at length 1, in float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(squares + eps)


def lengths(x):
    """Lengths of vectors of the last axis, in float32, with a gradient at zero too."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x**2, axis=-1)
    return jnp.sqrt(squares + 1e-12)


def shift_shares(change, live=None):
    """How far a layer moves each token, as shares of the live ones. -> [B, n] float32.

    change: [B, n, D], what the layer adds to them
    live: [B, n], 1 for the tokens that count and 0 for others; None: all count
    Source: Choi et al. 2025 (Representation Shift, by the L2 distance).
    """
    moved = lengths(change)
    if live is not None:
        moved = moved * live
    total = jnp.sum(moved, axis=1, keepdims=True)
    return moved / jnp.maximum(total, 1e-6)


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
    products = jnp.sum(query[:, None] * key, axis=-1)
    logits = products * query.shape[-1] ** -0.5
    return attention_row(logits, key_bias)


def attention_row(logits, key_bias=None):
    """Attention of one query, mean over heads. [B, N, H], [B, N] float32 -> [B, N]."""
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    total = log_sum_exp(logits)[:, None, :]
    weights = jnp.exp(logits - total)
    return jnp.mean(weights, axis=2)


@jax.custom_jvp
def log_sum_exp(logits):
    """log of the sum over axis 1 of exp: [B, N, H] float32 -> [B, H], in one pass."""
    # Not minus infinity, whose difference with itself is NaN: e^-1e30 is 0 as well.
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
    if live is None:
        live = jnp.ones(key.shape[:2], jnp.float32)
    count = jnp.sum(live, axis=1, keepdims=True)
    count = jnp.maximum(count, 1.0)
    energy = jnp.sum(alike * live[:, None, :], axis=2) / count
    unlike = (1 - energy) * live
    total = jnp.sum(unlike, axis=1, keepdims=True)
    return unlike / jnp.maximum(total, 1e-6)
