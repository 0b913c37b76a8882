"""DiffRate: prune and merge by searched token counts (Chen et al., ICCV 2023)."""

import dataclasses
import functools
import json
import operator
import pathlib
import sys
from typing import Any, Self

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.kernels.ranking import rank_tokens
from imagepiece_jax.kernels.similarity import all_cosines
from imagepiece_jax.reduction import schedules
from imagepiece_jax.reduction.block_plan import Step
from imagepiece_jax.reduction.methods.method import Method, ModelFacts, check_entries
from imagepiece_jax.reduction.reducers import Ranking, join_kept
from imagepiece_jax.reduction.state import Assignment

# Published schedules for models with 197 tokens: {model: {GMACs: (counts after pruning,
# counts after merging)}}, one count per block, class token included.
# Source: compression_rate.json in the authors' code, OpenGVLab/DiffRate.
COUNT_LISTS_FILE = pathlib.Path(__file__).with_suffix(".json")
ALL_TOKENS = sys.maxsize  # number of tokens to keep: all, so no token is dropped
MODEL_OF_WIDTH = {192: "deit_ti", 384: "deit_s", 768: "deit_b"}
# GMACs of the schedules with accuracies reported by the authors; for DeiT-Ti, a
# schedule with an equal share of the MACs.
DEFAULT_GMACS = {"deit_ti": 0.8, "deit_s": 2.9, "deit_b": 11.5, "mae_b": 11.5}


@functools.cache
def load_schedules(model_name: str) -> dict[float, tuple[tuple[int, ...], ...]]:
    """Load a model's schedules: {GMACs: (counts after pruning, after merging)}."""
    lists = json.loads(COUNT_LISTS_FILE.read_text("utf-8"))[model_name]
    return {float(gmacs): tuple(map(tuple, pair)) for gmacs, pair in lists.items()}


def _count_with_class_token(shares, patches):
    return tuple(1 + count for count in schedules.shares_to_counts(shares, patches))


@dataclasses.dataclass(frozen=True)
class PruneAndMerge(Ranking):
    """Keep the `kept` highest-scored tokens, drop the rest, then merge to the counts.

    The lowest-scored kept tokens merge into the most similar staying tokens. Features
    are plain means.
    """

    kept: int  # number of tokens before merging

    def __call__(self, inputs, counts, train=False):
        """Keep `n_out` tokens by score; the next join them, and the rest is dropped."""
        n_out = counts.n_out
        # Slots and similarities are decisions, through which no gradient flows.
        x, score = jax.lax.stop_gradient((inputs.x, self.token_scores(inputs, counts)))
        # ALL_TOKENS exceeds every count, and a rule's `n_out` may exceed `kept`.
        num_kept = min(max(self.kept, n_out), counts.n_in)
        ranks = rank_tokens(score)  # [batch, tokens], from 0
        if num_kept == n_out:
            slot_of_token = jnp.where(ranks < n_out, ranks, DROPPED)
            return Assignment(
                slot_of_token, attn_size=inputs.attn_size, n_out=n_out, merges=False
            )
        slot_of_token, cosine = join_kept(all_cosines(x, inputs.all_x), ranks, n_out)
        attn_size = inputs.attn_size * cosine  # as in the authors' code
        if num_kept < counts.n_in:
            is_dropped = ranks >= num_kept
            slot_of_token = jnp.where(is_dropped, DROPPED, slot_of_token)
            attn_size = jnp.where(is_dropped, 0.0, attn_size)
        return Assignment(
            slot_of_token, attn_size=attn_size, n_out=n_out, by_size=False
        )


@dataclasses.dataclass(frozen=True)
class DiffRate(Method):
    """In every block, prune to a first token count, then merge to a second."""

    default_prop_attn = True
    amount_fields = ("target", "prune", "merge")

    # GMACs of a published schedule for the model's size; None: by `DEFAULT_GMACS`
    target: float | None = None
    # instead of a published schedule: token counts after pruning, and after merging,
    # per block, class token included
    prune: tuple[int, ...] | None = None
    merge: tuple[int, ...] | None = None
    score: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None:
            check_range("target", self.target, 0)
        if self.prune is self.merge is None:
            return
        prune: Any = self.prune
        merge: Any = self.merge
        # The class token stays, and at least one more.
        check_entries("prune", prune, least=2)
        check_entries("merge", merge, least=2)
        if any(map(operator.lt, prune, merge)):
            raise InputError(f"merge is {self.merge}, with more tokens than prune")

    def choose_count_lists(
        self, facts: ModelFacts, stretch: bool = False
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (prune, merge): the given lists, or the published ones for the size.

        stretch: a model of another size gets stretched lists of the nearest width
        Raises InputError for another size without `stretch`.
        """
        if self.prune is not None and self.merge is not None:
            return self.prune, self.merge
        width = min(MODEL_OF_WIDTH, key=lambda width: abs(width - facts.embed_dim))
        model_name = MODEL_OF_WIDTH[width]
        # MAE-B's schedules need ".mae" in the model's name, or a head that reads the
        # mean.
        is_mae = facts.pool == "mean" or ".mae" in (facts.name or "")
        if model_name == "deit_b" and is_mae:
            model_name = "mae_b"
        model_size = facts.embed_dim, facts.depth, facts.patches
        is_published_size = model_size == (width, 12, 196)  # DeiT's depth and patches
        if not is_published_size and not stretch:
            raise InputError(
                "diffrate has schedules only for DeiT-Ti, S, B and MAE-B with 196 "
                "patches; for another model give macs, or prune and merge"
            )
        target = DEFAULT_GMACS[model_name] if self.target is None else self.target
        lists_by_gmacs = load_schedules(model_name)
        check_choice("target", float(target), lists_by_gmacs)
        prune, merge = lists_by_gmacs[target]
        if is_published_size:
            return prune, merge

        def stretch_counts(counts):  # with the class token, before and after
            image_counts = [count - 1 for count in counts]
            # The ratio 0.5 leaves shares as they are.
            shares = schedules.stretched_shares(image_counts, facts.depth, ratio=0.5)
            return _count_with_class_token(shares, facts.patches)

        return stretch_counts(prune), stretch_counts(merge)

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        """Raise the image tokens' shares in both lists to a power by the ratio."""

        def scale_counts(counts):  # with the class token, before and after
            shares = [(count - 1) / facts.patches for count in counts]
            scaled_shares = schedules.powered_shares(shares, ratio)
            return _count_with_class_token(scaled_shares, facts.patches)

        prune, merge = map(scale_counts, self.choose_count_lists(facts, stretch=True))
        return dataclasses.replace(self, prune=prune, merge=merge)

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        score = self.score_for(facts)
        if self.counts is not None:  # no token is dropped
            reducer = PruneAndMerge(ALL_TOKENS, score=score)
            return tuple(Step(block, reducer) for block in range(facts.depth))
        prune, merge = self.choose_count_lists(facts)
        if not len(prune) == len(merge) == facts.depth:
            raise InputError(f"prune and merge need an entry per block, {facts.depth}")
        steps = []
        for block, (num_kept, num_left) in enumerate(zip(prune, merge, strict=True)):
            # The lists count the class token.
            reducer = PruneAndMerge(num_kept - 1, score=score)
            steps.append(Step(block, reducer, tokens=num_left - 1))
        return tuple(steps)
