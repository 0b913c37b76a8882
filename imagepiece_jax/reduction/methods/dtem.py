"""DTEM: merge tokens by a learned embedding (Lee & Hong, NeurIPS 2024).

Training merges tokens only partly and removes none, so that choices have a gradient.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.reduction import ops
from imagepiece_jax.reduction.block_plan import Remove, Step
from imagepiece_jax.reduction.methods.method import ParamGroup, Removal
from imagepiece_jax.reduction.reducers import Bipartite, Reducer
from imagepiece_jax.reduction.state import Mixing

NEIGHBORS = 3  # number of partners over which training may spread a token
TEMPERATURE = 0.1  # of the soft choice; the authors divide similarities by it twice
TINY = 1e-12  # attention size of a token that is merged away, so that it has a log


def soft_top(similarity, merges):
    """Choose `merges` rows softly, and columns for each of them.

    There are `merges` draws. Each is a softmax over the NEIGHBORS largest entries of
    all rows, in which rows count less the more of them is chosen already.

    similarity: [B, a, b]
    Returns [B, a, b]: how much of each row is chosen, by column; at most 1 in a row.
    Source: Lee & Hong 2024, section 3.2.
    """
    near = ops.smallest(-jax.lax.stop_gradient(similarity), NEIGHBORS)
    logits = jnp.where(near, similarity, 0) / (TEMPERATURE * TEMPERATURE)

    def draw(carry, _):
        chosen, discount = carry
        entries = jnp.where(near, logits + discount[:, :, None], -jnp.inf)
        share = jax.nn.softmax(entries.reshape(len(entries), -1))
        share = share.reshape(entries.shape)
        drawn = jnp.sum(share, axis=-1)
        left = jnp.maximum(1 - drawn, 2.0**-23)  # so that it has a log
        discount = discount + jnp.log(left) / TEMPERATURE
        return (chosen + share, discount), None

    start = (jnp.zeros_like(similarity), jnp.zeros_like(similarity[..., 0]))
    (chosen, _), _ = jax.lax.scan(draw, start, length=merges)
    total = jnp.sum(chosen, axis=-1, keepdims=True)
    total = jnp.maximum(total, 1.0)
    return chosen / jax.lax.stop_gradient(total)


def soft_merge(similarity, size, live, merges):
    """The soft merges as a Mixing, whose tokens are in the order of falling size.

    Of the first `live` tokens, those at even places are spread over those at odd
    places, and lose as much of their size.

    similarity: [B, a, b], of the tokens at even places to those at odd places
    size: [B, n], attention sizes
    live: number of tokens that evaluation would have here
    merges: number of them that evaluation would merge
    """
    n = size.shape[1]
    spread = soft_top(similarity, merges)  # [B, a, b]
    even_size = size[:, 0:live:2]
    odd_size = size[:, 1:live:2]
    moved = spread * even_size[:, :, None]
    grown = odd_size + jnp.sum(moved, axis=1)
    left = 1 - jnp.sum(spread, axis=-1)  # share of its size that an even token keeps
    excess = jnp.clip(left, 0, 1) - left
    clipped = left + jax.lax.stop_gradient(excess)  # with the gradient of `left`
    # A token at an odd place becomes the mean, by size, of itself and of what is spread
    # over it. First the weights of the latter, at odd rows and even columns.
    safe = jnp.maximum(grown, TINY)
    to_odd = moved.transpose(0, 2, 1) / safe[:, :, None]  # [B, b, a]
    rest = n - live
    odd = live % 2
    rows = (1, rest + odd, 1)  # in front of them, behind them and between two
    columns = (0, rest + 1 - odd, 1)
    matrix = jax.lax.pad(to_odd, jnp.float32(0), ((0, 0, 0), rows, columns))
    # Then the weights of the tokens themselves: all others keep their features.
    scale = ops.alternate(jnp.ones_like(even_size), odd_size / safe)
    scale = jnp.pad(scale, ((0, 0), (0, rest)), constant_values=1.0)
    scale = scale[:, :, None]
    matrix = matrix + scale * jnp.eye(n, dtype=jnp.float32)[None]
    sizes = ops.alternate(even_size * clipped, grown)
    order = ops.rank(jax.lax.stop_gradient(sizes))
    order = ops.invert(order, live)
    sizes = _reordered(sizes, order, size, live)
    matrix = _reordered(matrix, order, matrix, live)
    return Mixing(matrix, attn_size=sizes + TINY)


def _reordered(rows, order, whole, live):
    """The rows at `order`, followed by the rows of `whole` from `live` on."""
    ordered = ops.gather_rows(rows, order)
    return jnp.concatenate([ordered, whole[:, live:]], axis=1)


class Embedding(nn.Module, Reducer):
    """Merges tokens as ToMe does, by a learned embedding of attention's input.

    In masked training it merges softly. The input gets no gradient from the embedding.
    """

    metric = "input"
    needs = frozenset({"metric"})

    @nn.compact
    def __call__(self, taps, counts, train=False):
        x = jax.lax.stop_gradient(taps.metric).astype(jnp.float32)
        width = embedding_width(x.shape[-1], taps.num_heads)
        embedding = nn.Dense(width, name="embed")(x)
        if counts.evaluation is None:
            return Bipartite()(taps.replace(metric=embedding), counts)
        live = counts.evaluation.n_in
        merges = live - counts.evaluation.n_out
        embedding = embedding[:, :live]
        even = embedding[:, 0::2]
        odd = embedding[:, 1::2]
        similarity = ops.cosine(even, odd, eps=1e-12)
        return soft_merge(similarity, taps.attn_size, live, merges)

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        return n_in * embed_dim * embedding_width(embed_dim, num_heads)


def embedding_width(embed_dim, num_heads):
    """Width of the embedding: that of a head, or twice that for widths from 1,024."""
    if embed_dim >= 1024:
        return 2 * embed_dim // num_heads
    return embed_dim // num_heads


@dataclasses.dataclass(frozen=True)
class DTEM(Removal):
    """Every block merges `r` tokens away, at most half of its image tokens."""

    amounts = ("r",)

    r: int = 16  # number of tokens that a block merges away

    def __post_init__(self):
        super().__post_init__()
        check_range("r", self.r, 0, whole=True)

    def steps(self, depth):
        steps = []
        for block, r in enumerate(self.removed(depth)):
            if r:
                steps.append(Step(block, Embedding(), Remove(r), when_masked=0))
        return tuple(steps)

    def param_groups(self, path):
        """Only the embeddings are trained."""
        if path.startswith("reducer_"):
            return ParamGroup()
        return ParamGroup(frozen_epochs=math.inf)
