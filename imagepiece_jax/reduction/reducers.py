"""Reducers that several methods use: which tokens stay, and which are merged.

A reducer chooses tokens, as many as it is given counts for: it reads `Taps` and returns
an `Assignment` (or a `Mixing`, or in masked training a `Masking`).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.reduction.assignments import (
    after_kernel,
    find_partners,
    keep_and_sum,
    keep_highest,
    merge_in_place,
)
from imagepiece_jax.reduction.kernels import fused
from imagepiece_jax.reduction.ops import (
    alternate,
    cosine,
    cosine_within,
    gather_rows,
    invert,
    pick,
    place_among,
    rank,
)
from imagepiece_jax.reduction.tokens import Assignment, SlotIndex

METRICS = ("key", "query", "value", "token")  # what a reducer may compare
# How tokens can be ranked, and the field of Taps that holds it. "auto" is class
# attention here: `Method.resolved` names another for models without class token.
SCORES = {
    "auto": "cls_attn",
    "class": "cls_attn",
    "received": "attn_columns",
    "energy": "energy",
    "probe": "probe",
}


class Reducer:
    """Base of all reducers: frozen dataclasses, or Flax modules where they learn.

    Called as reducer(taps, counts, train).
    """

    # What is computed for it: values of SCORES, "metric"; "rng": keys, if it `draws`.
    needs: ClassVar[frozenset[str]] = frozenset()
    # What is compared, one of METRICS, where it needs a metric.
    metric = None
    # The fused kernel that decides alike, if any; `fused` calls it.
    kernel = None

    def extra_macs(self, n_in: int, embed_dim: int, num_heads: int) -> int:
        """MACs of its own, for `n_in` image tokens."""
        return 0

    def draws(self, counts, train: bool) -> bool:
        """Whether it draws for these counts, in training or not: reads `Taps.rng`."""
        return "rng" in self.needs

    def check_grid(self, grid: tuple[int, int] | None):
        """InputError for a grid (height, width) of patches that does not suit it.

        None: a former reduction left no grid.
        """

    def fused(self, query, key, state, counts, prop_attn=False):
        """(state, Assignment) by its kernel: attention scores, decision and move."""
        raise NotImplementedError


class MaskingReducer(Reducer):
    """Base of reducers that draw a mask where they remove nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"rng"})

    def draws(self, counts, train):
        return counts.n_out >= counts.n_in


@dataclasses.dataclass(frozen=True)
class Ranking(Reducer):
    """Base of reducers that rank tokens by a score, one of SCORES.

    "class": the class token's attention; "received": the attention that a token
    receives, mean over queries; "energy": how little it is like the others (PiToMe,
    Tran et al. 2024); "probe": attention of the probe of the model's head to the tokens
    as they are at the step. All are shares, positive and at most 1 in sum, of which
    important tokens have more.
    """

    score: str = dataclasses.field(default="auto", kw_only=True)

    @property
    def needs(self):
        return frozenset({SCORES[self.score]})

    @property
    def by_class(self):
        """Whether it ranks by class attention, which the fused kernels compute."""
        return SCORES[self.score] == "cls_attn"

    def scores(self, taps):
        """[B, n] float32. What is masked is gone, and never among the lowest."""
        score = getattr(taps, SCORES[self.score])
        if taps.mask is None:
            return score
        return jnp.where(taps.mask > 0.5, score, jnp.inf)


@dataclasses.dataclass(frozen=True)
class TopK(Ranking):
    """Keep the tokens of the highest scores, in spatial order.

    fuse: the last of the `n_out` tokens is the sum of the dropped ones weighted by
    score, not normalized, and its gradient reaches the score (EViT, Liang et al. 2022,
    by class attention).
    """

    fuse: bool = False

    def __call__(self, taps, counts, train=False):
        score = self.scores(taps)
        if not self.fuse:
            return keep_highest(score, counts.n_out)
        keep = rank(score) < counts.n_out - 1
        return keep_and_sum(keep, score, counts.n_out)

    @property
    def kernel(self):
        """The fused kernel that does the same, where there is one."""
        return "prune" if self.by_class and not self.fuse else None

    def fused(self, query, key, state, counts, prop_attn=False):
        """Class attention, decision and move in one kernel (kernels.fused.prune)."""
        moved = fused.prune(
            query,
            key,
            state.x,
            state.size,
            n_out=counts.n_out,
            num_prefix=state.num_prefix,
            prop_attn=prop_attn,
        )
        return after_kernel(state, moved, counts)


@dataclasses.dataclass(frozen=True)
class Retokenize(Ranking):
    """Merge unimportant tokens with their most similar partners (ImagePiece, step II).

    The `candidates` tokens of the lowest scores, ordered by score (the paper's is class
    attention), alternate between two sides; the tokens of side A whose best partner on
    side B is most similar are merged into it, at its place. All other tokens keep their
    order.

    order: "descending" starts with the highest candidate; parity: which of the first
    two is on side A; metric: what is compared ("key", "query", "value", "token");
    size_weighting: a merged token is the mean over patches, else over tokens; random:
    similarities are drawn instead, uniformly, so that chance makes the pairs (a
    control).
    """

    order: str = "descending"
    parity: int = 0
    metric: str = "key"
    size_weighting: bool = True
    random: bool = False

    @property
    def needs(self):
        return super().needs | {"rng" if self.random else "metric"}

    def __call__(self, taps, counts, train=False):
        n, b, r = counts.n_in, counts.candidates, counts.n_in - counts.n_out
        score = jax.lax.stop_gradient(self.scores(taps))
        # The candidates by their place, the highest first; side A before side B.
        place = np.arange(b) if self.order == "descending" else np.arange(b)[::-1]
        place = np.concatenate([place[self.parity :: 2], place[1 - self.parity :: 2]])
        first = (b + 1 - self.parity) // 2
        candidates = invert(rank(score), n - b + place)  # [B, b]
        if self.random:
            similarity = jax.vmap(
                lambda key: jax.random.uniform(key, (first, b - first))
            )(taps.rng)
        else:
            metric = gather_rows(jax.lax.stop_gradient(taps.metric), candidates)
            similarity = cosine_within(metric)[:, :first, first:]
        best, partner = find_partners(similarity, candidates[:, first:])
        absorbed, partners = pick(rank(best), r, candidates[:, :first], partner)
        result = merge_in_place(absorbed, partners, counts)
        if self.size_weighting:
            return result
        return result.replace(weight=jnp.ones_like(taps.size))

    @property
    def kernel(self):
        """The fused kernel that does the same, where there is one."""
        alike = self.by_class and self.metric == "key" and not self.random
        return "retokenize" if alike else None

    def fused(self, query, key, state, counts, prop_attn=False):
        """Class attention, decision and move in one (kernels.fused.retokenize)."""
        moved = fused.retokenize(
            query,
            key,
            state.x,
            state.size,
            candidates=counts.candidates,
            n_out=counts.n_out,
            order=self.order,
            parity=self.parity,
            size_weighting=self.size_weighting,
            num_prefix=state.num_prefix,
            prop_attn=prop_attn,
        )
        state, result = after_kernel(state, moved, counts)
        if not self.size_weighting:
            weight = jnp.ones(result.dest.shape, jnp.float32)
            result = result.replace(weight=weight)
        return state, result


@dataclasses.dataclass(frozen=True)
class Bipartite(Reducer):
    """Merge the most similar pairs between every other token and the rest (ToMe).

    Of all tokens, prefix included, those at even positions are side A, the others side
    B; the tokens of A whose best partner in B is most similar are merged into it. The
    prefix takes no part. The slots are the rest of A, then B: the next split by
    position so mixes the two (Bolya et al. 2023, section 3).

    metric: what is compared ("key", "query", "value", "token").
    """

    metric: str = "key"
    needs: ClassVar[frozenset[str]] = frozenset({"metric"})

    def __call__(self, taps, counts, train=False):
        merges, prefix = counts.n_in - counts.n_out, taps.num_prefix
        metric = jax.lax.stop_gradient(taps.metric)
        first = prefix % 2  # the first image token at an even position
        sources = jnp.arange(first, counts.n_in, 2, dtype=jnp.int32)[None]
        targets = jnp.arange(1 - first, counts.n_in, 2, dtype=jnp.int32)[None]
        similarity = cosine(metric[:, first::2], metric[:, 1 - first :: 2])
        best, partner = find_partners(similarity, targets)
        order = rank(best)  # [B, |A|]
        leaves = order < merges
        rest = sources.shape[1] - merges
        if prefix:
            place = place_among(~leaves)
            staying = invert(place, rest)
        else:  # the rest of A stands by falling similarity
            place = order - merges
            staying = invert(order, merges + np.arange(rest))
        # The place of a token on side B is half its index; `//` is nine operations.
        slot_of = rest + jax.lax.div(partner, 2)
        sources, targets = (
            jnp.broadcast_to(side, (order.shape[0], side.size))
            for side in (sources, targets)
        )
        sides = (jnp.where(leaves, slot_of, place), rest + targets // 2)
        absorbed, partner, target = pick(order, merges, sources, partner, slot_of)
        keep = jnp.concatenate([first + 2 * staying, targets], axis=1)
        return Assignment(
            dest=alternate(*(sides[::-1] if first else sides)),
            index=SlotIndex(
                keep=keep,
                absorbed=absorbed,
                target=target,
                groups=target,
                group_keep=partner,
            ),
            n_out=counts.n_out,
        )

    @property
    def kernel(self):
        """The fused kernel that does the same, where there is one."""
        return "bipartite" if self.metric == "key" else None

    def fused(self, query, key, state, counts, prop_attn=False):
        """Matching and move in one kernel (kernels.fused.bipartite)."""
        prefix = state.num_prefix
        moved = fused.bipartite(
            key, state.x, state.size, n_out=counts.n_out, num_prefix=prefix
        )
        return after_kernel(state, moved, counts)
