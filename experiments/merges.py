"""Measures of the merges inside a forward pass: pairs, their likeness, attention.

Pure functions of `Outputs.results` and `Outputs.reducer_inputs`, one value an image.
Tokens are image tokens; only steps that change something are counted.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels import ranking
from imagepiece_jax.kernels.merging import is_in_slot
from imagepiece_jax.kernels.ranking import gather_rows, rank_tokens
from imagepiece_jax.kernels.similarity import cosine_similarity, unit_vectors
from imagepiece_jax.reduction import block_plan
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.reducers import Reducer


@dataclasses.dataclass(frozen=True)
class Observed(Reducer):
    """A reducer's decisions, with class attention and keys among its inputs.

    So ToMe, which uses no class attention, can be compared with it.
    """

    reducer: Any

    @property
    def needed_inputs(self):
        return self.reducer.needed_inputs | {"cls_attn", "metric"}

    @property
    def metric(self):
        return self.reducer.metric or "key"

    def __call__(self, inputs, counts, train=False):
        return self.reducer(inputs, counts, train)


def observe_reducers(model):
    """`model` with `Observed` reducers; reducers with parameters stay.

    Raises InputError for a model without class token.
    """
    if not model.config.arch.class_token:
        problem = "has no class token, whose attention this experiment reads"
        allowed = "weights of a model with one"
        raise InputError(f"the model {problem}; allowed: {allowed}")
    prefix = model.config.arch.prefix
    counts_of_steps = [layer.counts.n_in for layer in model.plan if layer.counts]
    patches = [*counts_of_steps, model.plan[0].attn_tokens - prefix][0]
    steps = [layer.step for layer in model.plan if layer.step]
    for place, step in enumerate(steps):
        if not isinstance(step.reducer, nn.Module):
            reducer = Observed(step.reducer)
            steps[place] = dataclasses.replace(step, reducer=reducer)
    plan = block_plan.plan_blocks(model.depth, patches, steps, prefix)
    return model.clone(plan=plan)


@dataclasses.dataclass(frozen=True)
class Site:
    """One reduction of a plan: its block, its step in `Outputs.results`, its kind."""

    block: int
    step: int
    merges: bool
    counts: Any
    reducer: Any


def list_sites(model):
    """All Sites of `model`'s plan, in order."""
    all_sites = []
    for block, layer in enumerate(model.plan):
        if layer.counts:
            merges = isinstance(layer.step.rule, block_plan.RemoveAtMostHalf)
            facts = (merges, layer.counts, layer.step.reducer)
            all_sites.append(Site(block, len(all_sites), *facts))
    return all_sites


def merged_pairs(inputs, result, reducer, counts):
    """(tokens that left, tokens they were merged into), both [B, r], of a matching.

    reducer: a Bipartite or a Retokenize; a token of its side A left if its slot has
        another token, of which there is one
    """
    token = jnp.arange(counts.n_in)[None]
    is_a = (token + inputs.num_prefix) % 2 == 0
    if isinstance(reducer, Retokenize):
        place = rank_tokens(inputs.cls_attn) - (counts.n_in - counts.candidates)
        is_a = (place >= 0) & (place % 2 == reducer.parity)
    slot = result.slot_of_token
    is_partner = (slot[:, :, None] == slot[:, None, :]) & ~is_a[:, None, :]
    partner = jnp.max(jnp.where(is_partner, token[:, None, :], -1), axis=2)
    index = ranking.index_kept_tokens(is_a & (partner >= 0))
    left = ranking.invert_order(index, counts.n_in - counts.n_out)
    return left, gather_rows(partner, left)


def pair_similarity(inputs, pairs):
    """Mean cosine similarity of the merged pairs. [B]."""
    left, partner = pairs
    left_keys = unit_vectors(gather_rows(inputs.metric, left))
    partner_keys = unit_vectors(gather_rows(inputs.metric, partner))
    cosines = jnp.sum(left_keys * partner_keys, axis=-1)
    return jnp.mean(cosines, axis=1)


def candidate_similarity(inputs, counts):
    """Mean cosine similarity over all pairs that ImagePiece could have merged. [B].

    The candidates are its least attended tokens, split into two sides by attention.
    """
    order = jnp.argsort(rank_tokens(inputs.cls_attn), axis=1)
    first = counts.n_in - counts.candidates
    rows = gather_rows(inputs.metric, order[:, first:])
    cosines = cosine_similarity(rows[:, 0::2], rows[:, 1::2])
    return jnp.mean(cosines, axis=(1, 2))


def pair_distance(pairs, width):
    """Mean distance of the merged pairs, in patches from center to center. [B].

    The step's tokens must be single patches.

    width: number of patches in a row
    """
    left, partner = pairs
    rows = left // width - partner // width
    columns = left % width - partner % width
    squares = rows.astype(jnp.float32) ** 2 + columns**2
    return jnp.mean(jnp.sqrt(squares), axis=1)


def merged_slots(result):
    """Tokens after a matching that others were merged into. [B, n_out] bool."""
    return jnp.sum(is_in_slot(result.slot_of_token, result.n_out), axis=2) > 1


def attentive_share(merged, cls_attn, count):
    """Share of the `merged` tokens [B, n] among the `count` most attended. [B]."""
    among = rank_tokens(cls_attn) < count
    shared = jnp.sum(merged & among, axis=1)
    return shared / jnp.sum(merged, axis=1)


def mark_merged_tokens(pairs, n, both):
    """Which of `n` tokens a matching merges. [B, n] bool.

    both: count the tokens that others merge into, beside the leaving tokens
    """
    tokens, partner = pairs
    if both:
        tokens = jnp.concatenate([tokens, partner], axis=1)
    return jnp.any(tokens[:, None, :] == jnp.arange(n)[None, :, None], axis=2)


def percent_attended(members, cls_attn, percent):
    """Percent of the `members` [B, n] among the `percent` % most attended. [B].

    The count is rounded up: the top 70 % and ImagePiece's lowest 30 % share no token.
    """
    count = block_plan.exact_ceil(percent / 100 * cls_attn.shape[1])
    return 100 * attentive_share(members, cls_attn, count)
