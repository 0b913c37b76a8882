"""DTEM: merge tokens by a learned embedding (Lee & Hong, NeurIPS 2024).

Training merges tokens only partly and removes no token, so choices have a gradient.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels import ranking
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.reduction.block_plan import RemoveCount, Step
from imagepiece_jax.reduction.methods import method
from imagepiece_jax.reduction.reducers import Bipartite, Reducer
from imagepiece_jax.reduction.state import Mixing

SHARING_PARTNERS = 3  # most partners that share a token in training
CHOICE_TEMPERATURE = 0.1  # of the soft choice
TINY_SIZE = 1e-12  # attention size of a token merged away; 0 would have no logarithm


def choose_softly(
    similarity: Float[Array, "batch even odd"], num_merges: int
) -> Float[Array, "batch even odd"]:
    """Choose `num_merges` rows of `similarity` softly, and columns in the rows.

    Returns chosen amounts, with a sum of at most 1 per row.
    Source: Lee & Hong 2024, section 3.2.
    """
    # Every draw is a softmax over the SHARING_PARTNERS largest entries of all rows.
    # The more of a row is chosen already, the less the row counts.
    distance = -jax.lax.stop_gradient(similarity)
    is_candidate = ranking.mark_smallest(distance, SHARING_PARTNERS)
    # The authors divide similarities by the temperature twice.
    squared_temperature = CHOICE_TEMPERATURE * CHOICE_TEMPERATURE
    logits = jnp.where(is_candidate, similarity, 0) / squared_temperature

    def draw(carry, _):  # one merge's share of every entry
        amounts, discount = carry  # [batch, even, odd] and [batch, even]
        draw_logits = jnp.where(is_candidate, logits + discount[:, :, None], -jnp.inf)
        flat_share = jax.nn.softmax(draw_logits.reshape(len(draw_logits), -1))
        share = flat_share.reshape(draw_logits.shape)
        row_share = jnp.sum(share, axis=-1)
        row_rest = jnp.maximum(1 - row_share, 2.0**-23)  # 0 would have no logarithm
        discount = discount + jnp.log(row_rest) / CHOICE_TEMPERATURE
        return (amounts + share, discount), None

    initial_carry = (jnp.zeros_like(similarity), jnp.zeros_like(similarity[..., 0]))
    (amounts, _), _ = jax.lax.scan(draw, initial_carry, length=num_merges)
    row_sums = jnp.maximum(jnp.sum(amounts, axis=-1, keepdims=True), 1.0)
    return amounts / jax.lax.stop_gradient(row_sums)


def merge_softly(
    similarity: Float[Array, "batch even odd"],
    size: Float[Array, "batch tokens"],
    num_live: int,
    num_merges: int,
) -> Mixing:
    """Merge tokens softly, as a Mixing.

    Among the first `num_live` tokens, even tokens spread over odd tokens, and lose the
    spread share of their size. These tokens then stand in the order of falling size.

    similarity: from tokens at even places to tokens at odd places
    size: attention sizes
    num_live: token count in evaluation at this step
    num_merges: number of merges in evaluation
    """
    num_tokens = size.shape[1]
    spread_share = choose_softly(similarity, num_merges)  # [B, even, odd]
    even_size = size[:, 0:num_live:2]
    odd_size = size[:, 1:num_live:2]
    moved_size = spread_share * even_size[:, :, None]
    grown_size = odd_size + jnp.sum(moved_size, axis=1)
    # An even token keeps this share of its size, clipped without changing the gradient.
    kept_share = 1 - jnp.sum(spread_share, axis=-1)
    excess = jnp.clip(kept_share, 0, 1) - kept_share
    kept_share = kept_share + jax.lax.stop_gradient(excess)
    # A token at an odd place becomes the size-weighted mean of itself and its received
    # shares. First the weights of the shares, at odd rows and even columns.
    divisor = jnp.maximum(grown_size, TINY_SIZE)
    odd_weight = moved_size.transpose(0, 2, 1) / divisor[:, :, None]  # [B, odd, even]
    num_dead = num_tokens - num_live
    parity = num_live % 2
    row_padding = (1, num_dead + parity, 1)  # before, after and between rows
    column_padding = (0, num_dead + 1 - parity, 1)
    paddings = ((0, 0, 0), row_padding, column_padding)
    share_matrix = jax.lax.pad(odd_weight, jnp.float32(0), paddings)
    # Then the weights of the tokens themselves: all except odd tokens keep their
    # features.
    live_weight = ranking.interleave_tokens(
        jnp.ones_like(even_size), odd_size / divisor
    )
    weight = jnp.pad(live_weight, ((0, 0), (0, num_dead)), constant_values=1.0)
    row_weight = weight[:, :, None]
    matrix = share_matrix + row_weight * jnp.eye(num_tokens, dtype=jnp.float32)[None]
    live_size = ranking.interleave_tokens(even_size * kept_share, grown_size)
    ranks = ranking.rank_tokens(jax.lax.stop_gradient(live_size))
    order = ranking.invert_order(ranks, num_live)

    def reorder(live_rows, all_rows):  # the rows from `num_live` on stay
        ordered_rows = ranking.gather_rows(live_rows, order)
        return jnp.concatenate([ordered_rows, all_rows[:, num_live:]], axis=1)

    attn_size = reorder(live_size, size)
    return Mixing(reorder(matrix, matrix), attn_size=attn_size + TINY_SIZE)


class Embedding(nn.Module, Reducer):
    """Merge like ToMe, by a learned embedding of attention's input.

    Masked training merges softly. The input gets no gradient from the embedding.
    """

    metric = "input"
    needed_inputs = frozenset({"metric"})

    @nn.compact
    def __call__(self, inputs, counts, train=False):
        x = jax.lax.stop_gradient(inputs.metric).astype(jnp.float32)
        width = embedding_width(x.shape[-1], inputs.num_heads)
        embedding = nn.Dense(width, name="embed")(x)
        if counts.evaluation is None:
            inputs = dataclasses.replace(inputs, metric=embedding, all_metric=None)
            return Bipartite()(inputs, counts)
        num_live = counts.evaluation.n_in
        num_merges = num_live - counts.evaluation.n_out
        live_rows = embedding[:, :num_live]  # of [batch, tokens, width]
        similarity = cosine_similarity(
            live_rows[:, 0::2], live_rows[:, 1::2], eps=1e-12
        )
        return merge_softly(similarity, inputs.attn_size, num_live, num_merges)

    @nn.nowrap
    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        return n_in * embed_dim * embedding_width(embed_dim, num_heads)


def embedding_width(embed_dim: int, num_heads: int) -> int:
    """Embedding width: a head's width, doubled for models from width 1,024."""
    if embed_dim >= 1024:
        return 2 * embed_dim // num_heads
    return embed_dim // num_heads


@dataclasses.dataclass(frozen=True)
class DTEM(method.RemovalPerBlock):
    """Merge `r` tokens away in every block, at most half the image tokens."""

    amount_fields = ("r",)

    r: int = option(16, least=0)  # number of tokens merged away per block

    def steps(self, facts: method.ModelFacts) -> tuple[Step, ...]:
        rule = RemoveCount(self.r)
        return tuple(
            Step(block, Embedding(), rule, added_when_masked=0)
            for block in range(facts.depth if self.r else 0)
        )

    def param_groups(self, path: str) -> method.ParamGroup:  # pyrefly: ignore[bad-override]
        # Only the embeddings are trained.
        if path.startswith("reducer_"):
            return method.ParamGroup()
        return method.ParamGroup(frozen_epochs=math.inf)
