"""Array functions that all reductions share: ranking, choosing and comparing tokens.

Nothing here sorts, scatters or accumulates along an axis. Ranks are found by counting
comparisons, because that is one kernel on a GPU, where starting kernels costs most.
"""

import contextlib
import contextvars

import chex
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from imagepiece_jax.common.nodes import node

# Numbers of all tokens up to which fewer kernels are worth more bytes, by an estimate:
# those of 55 images in DeiT-S, of 14 in So400m.
FEW_NUMBERS = 2**22
_fast = contextvars.ContextVar("fast", default=False)


@contextlib.contextmanager
def fast(wanted=True):
    """Trace reductions in fewer and cheaper kernels of a GPU while entered, if wanted.

    Products have operands of two bytes where these are exact, and float32 sums; sums
    may have another order. Tokens leave as they do outside, but for near ties.
    """
    token = _fast.set(wanted)
    try:
        yield
    finally:
        _fast.reset(token)


def is_fast(x):
    """Whether `fast` is entered, and tokens x have numbers of two bytes."""
    return _fast.get() and x.dtype.itemsize == 2


def is_short(x):
    """Whether `is_fast`, and a GPU needs longer to start kernels than to move x."""
    return is_fast(x) and x.size <= FEW_NUMBERS


def order_key(score):
    """int32 keys that compare as the floats `score` do; a NaN is the lowest.

    Integers compare in one operation, floats with ties and NaN in several.
    """
    score = score.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    infinity = 0x7F800000
    magnitude = bits & 0x7FFFFFFF
    # The bits of negative floats descend as the floats ascend; both zeros become 0.
    key = jnp.where(bits < 0, -magnitude, magnitude)
    return jnp.where(magnitude > infinity, -infinity, key)


@node
def rank(score):
    """Place of each token in the order of falling scores, ties to the lower index.

    score: [B, n] float, where a NaN counts as minus infinity, or keys of `order_key`
    Returns [B, n] int32.
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
    """Indices of both tokens of every pair. [B, n] -> [B, n, n] int32 twice."""
    shape = values.shape + values.shape[-1:]
    mine = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    other = jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    return mine, other


@node
def place_among(keep):
    """Place of each kept token among the kept ones, negative for other tokens.

    keep: [B, n] bool
    Returns [B, n] int32.
    """
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    # A token that is not kept adds a penalty to its own sum, in the same pass.
    leaves = (other == mine) & ~keep[:, None, :]
    penalty = jnp.where(leaves, -keep.shape[1], 0)
    earlier = keep[:, None, :] & (other < mine)
    terms = earlier.astype(jnp.int32) + penalty
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


def place_or(keep, otherwise):
    """`place_among` of kept tokens, and `otherwise` of others, in one pass.

    keep: [B, n] bool
    otherwise: [B, n] int32
    Returns [B, n] int32.
    """
    mine, other = _indices(keep)
    earlier = keep[:, None, :] & (other < mine)
    once = jnp.where(other == 0, otherwise[:, :, None], 0)
    terms = jnp.where(keep[:, :, None], earlier.astype(jnp.int32), once)
    return jnp.sum(terms, axis=-1, dtype=jnp.int32)


@node
def count_before(keep):
    """Number of kept tokens before each token. [B, n] bool -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    mine, other = _indices(keep)
    earlier = keep[:, None, :] & (other < mine)
    return jnp.sum(earlier, axis=-1, dtype=jnp.int32)


@node
def invert(position, wanted):
    """The index at which `position` has each wanted value.

    A value that is nowhere gives 0. A value at several indices gives their sum.

    position: [B, n] int
    wanted: [m] values, or a number m for the values 0..m-1
    Returns [B, m] int32.
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
    # Without this barrier XLA computes all positions anew for each wanted one.
    position = jax.lax.optimization_barrier(position)
    wanted = jnp.arange(length, dtype=jnp.int32)[None, :, None]
    holds = position[:, None, :] == wanted
    taken = tuple(jnp.where(holds, value[:, None, :], 0) for value in values)
    return sums(taken, axis=2)


@node
def sums(values, axis):
    """Sums of several arrays along an axis, in one pass over all of them."""

    def add(a, b):
        return tuple(x + y for x, y in zip(a, b, strict=True))

    zeros = tuple(jnp.zeros((), value.dtype) for value in values)
    return jax.lax.reduce(tuple(values), zeros, add, (axis,))


def largest(key, order, payload):
    """(largest key, its order, its payload) of each row, in one pass.

    key: [..., n] int32, of which the largest is wanted
    order: [..., n] int32; of equal keys the one with the smallest order counts
    payload: [..., n] int32
    """
    lowest = jnp.int32(-(2**31))
    last = jnp.int32(2**31 - 1)
    start = (lowest, last, jnp.int32(0))
    return jax.lax.reduce((key, order, payload), start, _larger, (key.ndim - 1,))


def most_alike(similarity, payload):
    """(highest similarity, its payload) of each row, in one pass.

    similarity: [B, a, t] float32, above -3; a NaN never counts
    payload: [B, t] int32, 0 or more; of equal similarities the smallest counts
    Returns [B, a] twice.
    """
    payload = jnp.broadcast_to(payload[:, None, :], similarity.shape)
    similarity = jnp.where(jnp.isnan(similarity), -3.0, similarity)
    start = (jnp.float32(-3), jnp.int32(0))
    return jax.lax.reduce((similarity, payload), start, _larger, (2,))


def _larger(a, b):
    """Of two tuples the one that begins with more; of equal ones, then with less."""
    a_wins = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return tuple(jnp.where(a_wins, x, y) for x, y in zip(a, b, strict=True))


def smallest(values, k):
    """Whether each value is among the k smallest of its row, ties to the lower index.

    It takes k passes.
    """
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    marked = jnp.zeros(values.shape, bool)
    for _ in range(min(k, values.shape[-1])):
        rest = jnp.where(marked, jnp.inf, values)
        nearest = jnp.argmin(rest, axis=-1).astype(jnp.int32)
        marked |= index == nearest[..., None]
    return marked


def squared_distances(x):
    """Squared distances of all pairs of tokens. [B, n, D] float32 -> [B, n, n].

    Squares of differences are summed, because |a|^2 + |b|^2 - 2 a.b is noise for nearly
    equal tokens. XLA stores no array of differences while they are used only once.
    Distances beyond float32 count as its largest number.
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
    """The rows of each image at an index.

    x: [B, n, ...]
    index: [B, ...] in [0, n)
    Returns the shape of the index, followed by that of a row.
    """
    batch, n = x.shape[:2]
    # Rows of one matrix: pairs of (image, row) would be one more array in memory.
    start = n * jnp.arange(batch, dtype=index.dtype)
    index = index + start.reshape(batch, *(1,) * (index.ndim - 1))
    flat = x.reshape(batch * n, *x.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")


def cosine(a, b=None, eps=1e-6):
    """Cosine similarities in float32. [B, n, d], [B, m, d] -> [B, n, m].

    b: None: all pairs of `a`, by one product that has squared lengths on its diagonal.
        Numbers of two bytes are then operands as they are, and their products exact
    """
    chex.assert_rank(a, 3)
    if b is not None:
        return products(unit(a, eps), unit(b, eps))
    precision = "highest" if a.dtype.itemsize > 2 else None
    product = jnp.einsum(
        "bnd,bmd->bnm", a, a, precision=precision, preferred_element_type=jnp.float32
    )
    # The batch of an exported program is a symbol, which has no len().
    flat = product.reshape(a.shape[0], -1)
    scale = jax.lax.rsqrt(flat[:, :: a.shape[1] + 1] + eps)
    return product * scale[:, :, None] * scale[:, None, :]


def products(a, b):
    """Products of all rows, in float32. [B, n, d], [B, m, d] -> [B, n, m]."""
    a = a.astype(jnp.float32)
    b = b.astype(jnp.float32)
    return jnp.einsum("bnd,bmd->bnm", a, b, precision="highest")


@node
def unit(x, eps=1e-6):
    """Vectors of the last axis, scaled to length 1, in float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(squares + eps)


def lengths(x):
    """Lengths of vectors of the last axis, in float32, also with a gradient at 0."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x**2, axis=-1)
    return jnp.sqrt(squares + 1e-12)


def shift_shares(change, live=None):
    """How far a layer moves each token, as shares that add up to 1. -> [B, n] float32.

    change: [B, n, D], what the layer adds to the tokens
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

    The softmax is over all N tokens, the prefix included.

    query: [B, H, d] of the class token
    key: [B, N, H, d]
    key_bias: [B, N], which is added to the logits
    Returns [B, N] float32.
    """
    in_one_kernel = is_fast(key)
    query = query.astype(jnp.float32)
    key = key.astype(jnp.float32)
    products = jnp.sum(query[:, None] * key, axis=-1)
    logits = products * query.shape[-1] ** -0.5
    if not in_one_kernel:
        return attention_row(logits, key_bias)
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    # A GPU computes all of a softmax in one kernel where the tokens are innermost.
    by_head = logits.transpose(0, 2, 1)
    by_head = with_layout_constraint(by_head, Layout((0, 1, 2)))
    return jnp.mean(jax.nn.softmax(by_head, axis=-1), axis=1)


def attention_row(logits, key_bias=None):
    """Attention of one query, mean over heads. [B, N, H], [B, N] float32 -> [B, N]."""
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    total = log_sum_exp(logits)[:, None, :]
    weights = jnp.exp(logits - total)
    return jnp.mean(weights, axis=2)


@jax.custom_jvp
def log_sum_exp(logits):
    """log(sum(exp(logits))) over axis 1, in one pass. [B, N, H] float32 -> [B, H]."""
    # -1e30 in place of minus infinity, whose difference with itself is NaN.
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
    """How unlike the others each token is, as shares that add up to 1.

    That is 1 - E by PiToMe's energy E, the mean of ELU(cosine - margin) over all
    tokens. E is at most 1, and high for a token that is like many others.

    key: [B, n, d], means over heads
    live: [B, n], 1 for the tokens that count and 0 for others; None: all count
    Returns [B, n] float32.
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
