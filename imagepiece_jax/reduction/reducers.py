"""Which tokens? The deciders that several methods use.

A reducer sees image tokens only and returns an `Assignment`; the counts are given.
`needs` says what attention must compute for it.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from imagepiece_jax.reduction.ops import (
    cosine,
    count_before,
    gather_rows,
    invert,
    rank,
)
from imagepiece_jax.reduction.tokens import DROPPED, Assignment

METRICS = ("key", "query", "value", "token")  # what a reducer may compare


def keep_highest(score, n_out):
    """Assignment that keeps the `n_out` highest scores, in spatial order. [B, n]."""
    keep = rank(score) < n_out
    dest = jnp.where(keep, count_before(keep), DROPPED)
    return Assignment(dest=dest, n_out=n_out, merged=0)


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keep the `n_out` tokens the class token attends to most, in spatial order."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attn"})

    def __call__(self, taps, counts, train=False):
        return keep_highest(taps.cls_attn, counts.n_out)


@dataclasses.dataclass(frozen=True)
class TopKFuse:
    """Keep the `n_out - 1` most attended tokens; the others become one, at the end.

    That token is the attention-weighted sum of the dropped ones, not normalised, and
    its gradient reaches the attention (EViT, Liang et al. 2022).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attn"})

    def __call__(self, taps, counts, train=False):
        fused = counts.n_out - 1
        keep = rank(taps.cls_attn) < fused
        return Assignment(
            dest=jnp.where(keep, count_before(keep), fused),
            weight=jnp.where(keep, 1.0, taps.cls_attn),
            n_out=counts.n_out,
            mean=False,
            merged=1,
        )


@dataclasses.dataclass(frozen=True)
class Retokenize:
    """Merge inattentive tokens with their most similar partners (ImagePiece, step II).

    The `candidates` least attended tokens, ordered by class attention, are dealt to two
    sides in turn; the tokens of side A whose best partner on side B is most similar are
    merged into it, at its place. All other tokens keep their order.

    order: "descending" deals the most attended candidate first; parity: which of the
    two dealt first is side A; metric: what is compared ("key", "query", "value",
    "token"); size_weighting: a merged token is the mean over patches, else over tokens.
    """

    order: str = "descending"
    parity: int = 0
    metric: str = "key"
    size_weighting: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"cls_attn", "metric"})

    def __call__(self, taps, counts, train=False):
        n, b, r = counts.n_in, counts.candidates, counts.n_in - counts.n_out
        score = jax.lax.stop_gradient(taps.cls_attn)
        if taps.mask is not None:  # what is masked is never a candidate
            score = jnp.where(taps.mask > 0.5, score, jnp.inf)
        metric = jax.lax.stop_gradient(taps.metric)
        # Position among the candidates, most attended first; negative: not one of them.
        place = rank(score) - (n - b)
        tokens = invert(jnp.where(place < 0, n, place), b)  # [B, b]
        if self.order == "ascending":
            tokens, place = tokens[:, ::-1], jnp.where(place < 0, -1, b - 1 - place)
        sources, targets = tokens[:, self.parity :: 2], tokens[:, 1 - self.parity :: 2]
        similarity = cosine(gather_rows(metric, sources), gather_rows(metric, targets))
        chosen = rank(jnp.max(similarity, axis=-1)) < r  # [B, |A|]
        partner = gather_rows(targets, jnp.argmax(similarity, axis=-1))

        side = (place - self.parity) // 2  # place of a token of side A within it
        on_side = (place >= 0) & (place % 2 == self.parity)
        side = jnp.clip(side, 0, sources.shape[1] - 1)
        leaves = on_side & gather_rows(chosen, side)
        slot = count_before(~leaves)
        joined = gather_rows(slot, gather_rows(partner, side))
        return Assignment(
            dest=jnp.where(leaves, joined, slot),
            weight=None if self.size_weighting else jnp.ones_like(taps.size),
            n_out=counts.n_out,
            merged=r,
        )


@dataclasses.dataclass(frozen=True)
class Bipartite:
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
        merges = counts.n_in - counts.n_out
        metric = jax.lax.stop_gradient(taps.metric)
        first = taps.num_prefix % 2  # the first image token at an even position
        sources, targets = metric[:, first::2], metric[:, 1 - first :: 2]
        similarity = cosine(sources, targets)
        order = rank(jnp.max(similarity, axis=-1))  # [B, |A|]
        leaves = order < merges
        # Without class token the rest of A stands by falling similarity.
        slot = count_before(~leaves) if taps.num_prefix else order - merges
        rest = sources.shape[1] - merges
        partner = jnp.argmax(similarity, axis=-1).astype(jnp.int32)
        source_dest = jnp.where(leaves, rest + partner, slot)
        target_dest = rest + jnp.arange(targets.shape[1], dtype=jnp.int32)
        target_dest = jnp.broadcast_to(target_dest, targets.shape[:2])
        sides = (target_dest, source_dest) if first else (source_dest, target_dest)
        return Assignment(dest=_alternate(*sides), n_out=counts.n_out, merged=merges)


def _alternate(first, second):
    """Take turns: [B, ceil(n / 2)] and [B, n // 2] -> [B, n], `first` first."""
    batch, half = first.shape
    n = half + second.shape[1]
    second = jnp.pad(second, ((0, 0), (0, half - second.shape[1])))
    return jnp.stack([first, second], axis=-1).reshape(batch, 2 * half)[:, :n]
