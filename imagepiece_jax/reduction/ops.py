"""Array code that all reductions share: ordering by counting, and moving the tokens.

Nothing here sorts, scatters or accumulates along an axis: positions are counted with
comparisons, which XLA fuses into one kernel, and tokens move by gathers alone.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from imagepiece_jax.reduction.tokens import (
    DROPPED,
    Masking,
    Mixing,
    TokenState,
    compose,
)


def rank(score):
    """Position of each token by falling score, ties to the lower index. [B, n] -> [B,
    n].

    Position 0 has the highest score; a NaN counts as minus infinity.
    """
    chex.assert_rank(score, 2)
    score = jnp.where(jnp.isnan(score), -jnp.inf, score)
    mine, other, n = score[:, :, None], score[:, None, :], score.shape[1]
    earlier = jnp.tri(n, k=-1, dtype=bool)[None]  # [1, n, n], j < i
    before = (other > mine) | ((other == mine) & earlier)
    return jnp.sum(before, axis=-1, dtype=jnp.int32)


def count_before(keep):
    """How many kept tokens come before each token. [B, n] bool -> [B, n] int32."""
    chex.assert_rank(keep, 2)
    earlier = jnp.tri(keep.shape[1], k=-1, dtype=bool)[None]
    return jnp.sum(keep[:, None, :] & earlier, axis=-1, dtype=jnp.int32)


def invert(position, length):
    """Index that holds each position 0..length-1. [B, n] int -> [B, length] int32.

    A position that no index holds gives 0, one that several hold their sum: callers
    pass positions that are distinct where they are below `length`.
    """
    chex.assert_rank(position, 2)
    index = jnp.arange(position.shape[1], dtype=jnp.int32)[None, None, :]
    holds = position[:, None, :] == jnp.arange(length, dtype=jnp.int32)[None, :, None]
    return jnp.sum(jnp.where(holds, index, 0), axis=-1, dtype=jnp.int32)


def gather_rows(x, index):
    """Rows `index` of each image: [B, n, ...], [B, m] in [0, n) -> [B, m, ...]."""
    index = index.reshape(index.shape + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")


def cosine(a, b, eps=1e-6):
    """Cosine similarities in float32. [B, n, d], [B, m, d] -> [B, n, m]."""
    chex.assert_rank([a, b], 3)

    def unit(x):
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps)

    return jnp.einsum("bnd,bmd->bnm", unit(a), unit(b), precision="highest")


def apply(state, result, form=None):
    """`state` after a reduction: an Assignment, a Mixing or a Masking -> TokenState.

    The prefix stays in front. An Assignment moves tokens to the slots it names:
    features are the weighted mean (or sum) of a slot's tokens, sizes add up, the source
    map is composed. `form`: "gather" (needs `result.merged`), "one_hot" (a batched
    product: the oracle, and for export), None: gather where it can.
    """
    chex.assert_rank(state.x, 3)
    if isinstance(result, Masking):
        return _apply_masking(state, result)
    if isinstance(result, Mixing):
        return _apply_mixing(state, result)
    n_in, n_out, prefix = result.dest.shape[1], result.n_out, state.num_prefix
    chex.assert_shape(state.x, (None, prefix + n_in, None))
    if form not in (None, "gather", "one_hot"):
        raise ValueError(f"form is {form!r}; allowed are None, 'gather', 'one_hot'")
    if form is None:
        form = "one_hot" if result.merged is None else "gather"
    size = state.size[:, prefix:]
    share = _shares(result, size)
    dest = _prepend(result.dest, prefix)
    if share is not None:
        share = jnp.pad(share, ((0, 0), (prefix, 0)), constant_values=1.0)
    if form == "one_hot":
        x = _move_by_product(state.x, share, dest, prefix + n_out)
    else:
        x = _move_by_gather(
            state.x, share, dest, prefix + n_out, result.merged, result.mean
        )
    belongs = _belongs(dest, prefix + n_out)
    mask = state.mask
    if mask is not None:  # a slot is live if any of its tokens is
        live = jnp.where(belongs[:, prefix:, prefix:], mask[:, None, :], 0)
        mask = jnp.max(live, axis=-1)
    return TokenState(
        x=x,
        size=jnp.sum(jnp.where(belongs, state.size[:, None, :], 0), axis=-1),
        source=None if state.source is None else compose(result.dest, state.source),
        mask=mask,
        num_prefix=prefix,
    )


def _apply_mixing(state, result):
    """Rows overlap: every token counts as one, and no patch is in one token alone."""
    prefix = state.num_prefix
    mixed = jnp.einsum(
        "bon,bnd->bod",
        result.matrix.astype(jnp.float32),
        state.x[:, prefix:].astype(jnp.float32),
        precision="highest",
    )
    x = jnp.concatenate([state.x[:, :prefix], mixed.astype(state.x.dtype)], axis=1)
    return TokenState(x=x, size=jnp.ones(x.shape[:2], jnp.float32), num_prefix=prefix)


def _apply_masking(state, result):
    """Shapes stay, or grow by the appended token; where patches are is not traced."""
    state = state.replace(mask=result.keep, source=None)
    if result.append is None:
        return state
    last = result.append[:, None].astype(state.x.dtype)
    one = jnp.ones((last.shape[0], 1), jnp.float32)
    return state.replace(
        x=jnp.concatenate([state.x, last], axis=1),
        size=jnp.concatenate([state.size, one], axis=1),
        mask=jnp.concatenate([result.keep, one.astype(result.keep.dtype)], axis=1),
    )


def _prepend(dest, prefix):
    """Slot map of all tokens from that of the image tokens: the prefix stays."""
    first = jnp.arange(prefix, dtype=dest.dtype)[None]
    first = jnp.broadcast_to(first, (dest.shape[0], prefix))
    moved = jnp.where(dest == DROPPED, DROPPED, dest + prefix)
    return jnp.concatenate([first, moved], axis=1)


def _belongs(dest, n_out):
    """Which tokens go to which slot. [B, n] -> [B, n_out, n] bool."""
    return dest[:, None, :] == jnp.arange(n_out, dtype=dest.dtype)[None, :, None]


def _shares(result, size):
    """Factor of each token within its slot, [B, n] float32; None where all are 1.

    A token that is alone in its slot of a mean has exactly 1 (w / w).
    """
    if result.weight is None and result.merged == 0 and result.mean:
        return None
    weight = size if result.weight is None else result.weight
    weight = weight.astype(jnp.float32)
    if not result.mean:
        return weight
    together = result.dest[:, :, None] == result.dest[:, None, :]
    return weight / jnp.sum(jnp.where(together, weight[:, None, :], 0), axis=-1)


def _move_by_product(x, share, dest, n_out):
    """[B, n, D] -> [B, n_out, D] as a product with the map written out as a matrix."""
    share = jnp.ones(dest.shape, jnp.float32) if share is None else share
    matrix = jnp.where(_belongs(dest, n_out), share[:, None, :], 0)
    moved = jnp.einsum(
        "bon,bnd->bod", matrix, x.astype(jnp.float32), precision="highest"
    )
    return moved.astype(x.dtype)


# The map is known, so the backward pass is a gather too: without a rule of its own a
# gather differentiates into a scatter-add, slow and on GPUs not deterministic.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _move_by_gather(x, share, dest, n_out, merged, mean):
    """[B, n, D] -> [B, n_out, D] in one pass over x.

    Each slot reads its own row of x or, where it has several sources, a row of a small
    [B, merged, D] array of weighted sums.
    """
    n = x.shape[1]
    belongs = _belongs(dest, n_out)
    index = jnp.arange(n, dtype=jnp.int32)[None, None, :]
    own = jnp.min(jnp.where(belongs, index, n - 1), axis=-1)
    alone = gather_rows(x, own)
    if share is None:
        return alone
    if not mean:
        factor = gather_rows(share, own)[:, :, None]
        alone = (alone.astype(jnp.float32) * factor).astype(x.dtype)
    if merged == 0:
        return alone
    several = jnp.sum(belongs, axis=-1, dtype=jnp.int32) > 1  # [B, n_out]
    place = count_before(several)
    slots = invert(jnp.where(several, place, n_out), merged)  # [B, merged]
    # A slot with c sources takes c of the n - n_out + merged tokens that can take part.
    taking = (dest != DROPPED) & gather_rows(several, jnp.maximum(dest, 0))
    limit = n - n_out + merged
    part = invert(jnp.where(taking, count_before(taking), n), limit)  # [B, limit]
    real = jnp.arange(limit)[None] < jnp.sum(taking, axis=-1, keepdims=True)
    factor = jnp.where(real, gather_rows(share, part), 0)
    matrix = gather_rows(dest, part)[:, None, :] == slots[:, :, None]
    sums = jnp.einsum(
        "bmp,bpd->bmd",
        jnp.where(matrix, factor[:, None, :], 0),
        gather_rows(x, part).astype(jnp.float32),
        precision="highest",
    )
    together = gather_rows(sums.astype(x.dtype), jnp.minimum(place, merged - 1))
    return jnp.where(several[:, :, None], together, alone)


def _move_forward(x, share, dest, n_out, merged, mean):
    return _move_by_gather(x, share, dest, n_out, merged, mean), (x, share, dest)


def _move_backward(n_out, merged, mean, saved, gradient):
    x, share, dest = saved
    rows = gather_rows(gradient, jnp.maximum(dest, 0))
    rows = jnp.where((dest == DROPPED)[:, :, None], 0, rows)
    if share is None:
        return rows, None, None
    rows = rows.astype(jnp.float32)
    d_share = jnp.sum(rows * x.astype(jnp.float32), axis=-1)
    return (rows * share[:, :, None]).astype(x.dtype), d_share, None


_move_by_gather.defvjp(_move_forward, _move_backward)
