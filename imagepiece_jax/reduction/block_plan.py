"""Token counts per block: rules, steps and plans, before anything is traced.

A method has `Step`s. A step's `Rule` sets how many image tokens stay. `build` turns
steps into one `BlockPlan` per block.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.errors import InputError

# "pre": before the block; "attention": inside attention, after the weights of all
# tokens are known and before they are applied to values; "mid": between attention and
# MLP
SITES = ("pre", "attention", "mid")


def ceil(x):
    """Ceiling, immune to binary rounding: 0.07 * 100 is 7, not 8."""
    return math.ceil(x - 1e-9)


def floor(x):
    """Floor, immune to binary rounding: 0.7 * 90 is 63, not 62."""
    return math.floor(x + 1e-9)


class Rule:
    """Base of counting rules; subclasses are frozen dataclasses."""

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        """Image token count after the step, or None if all tokens stay.

        n, n0: image tokens before this step, and before the first step
        stage: number of this step among the reducing steps, from 1
        """
        raise NotImplementedError

    def fewest(self, n: int, stage: int) -> int:
        """Lower limit for an entry of `counts` at this step, out of `n` tokens."""
        return 1

    def candidates(self, n: int) -> int | None:
        """Number of merge candidates; None: all tokens."""
        return None


class AtMostHalf(Rule):
    """Base of rules for pairwise merges: at most half the tokens leave."""

    def removed(self, n: int) -> int:
        """Number of tokens to remove from `n`, before the limit of one half."""
        raise NotImplementedError

    def n_out(self, n, n0, stage):
        removed = min(self.removed(n), self.half(n))
        return None if removed <= 0 else n - removed

    def fewest(self, n, stage):
        return n - self.half(n)

    def half(self, n):
        """Half the candidates: the most tokens that can leave."""
        candidates = self.candidates(n)
        if candidates is None:
            candidates = n
        return candidates // 2


@dataclasses.dataclass(frozen=True)
class Keep(Rule):
    """ceil(rate * n) tokens stay, at least 1."""

    rate: float
    fused: bool = False  # whether one more token sums up the leaving tokens

    def n_out(self, n, n0, stage):
        count = max(1, ceil(self.rate * n))
        if count == n:
            return None
        return count + 1 if self.fused else count

    def fewest(self, n, stage):
        return 2 if self.fused else 1


@dataclasses.dataclass(frozen=True)
class KeepInitial(Rule):
    """floor(rate * n0) tokens stay, at least 1."""

    rate: float
    packages: bool = False  # whether every step so far has added one more token

    def n_out(self, n, n0, stage):
        count = max(1, floor(self.rate * n0))
        if self.packages:
            count += stage
        return None if count >= n else count

    def fewest(self, n, stage):
        return 1 + stage if self.packages else 1


@dataclasses.dataclass(frozen=True)
class Remove(AtMostHalf):
    """`count` tokens leave, at most half."""

    count: int

    def removed(self, n):
        return self.count


@dataclasses.dataclass(frozen=True)
class MergeTo(AtMostHalf):
    """ceil(rate * n) tokens stay, as under `Keep(rate)`, but at most half leave."""

    rate: float

    def removed(self, n):
        return n - max(1, ceil(self.rate * n))


@dataclasses.dataclass(frozen=True)
class Merge(AtMostHalf):
    """ImagePiece's rule: ceil(merge_ratio * (n + 1)) tokens leave, merged in pairs.

    Pairs are among floor(candidate_ratio * n) candidates: at most half of them leave.
    """

    merge_ratio: float
    candidate_ratio: float

    def candidates(self, n):
        return floor(self.candidate_ratio * n)

    def removed(self, n):
        # The published arithmetic counts the class token: 16 of 197 tokens leave.
        return ceil(self.merge_ratio * (n + 1))


@dataclasses.dataclass(frozen=True)
class Fixed(Rule):
    """`tokens` tokens stay, for every n."""

    tokens: int

    def n_out(self, n, n0, stage):
        return self.tokens


class Unreachable(InputError):
    """Token counts outside the reach of a method's steps; a cost search ends there."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A token reduction at one block."""

    block: int
    # chooses the leaving tokens: a `reducers.Reducer`, which is an unbound Flax module
    # if it learns
    reducer: Any
    rule: Rule  # sets how many tokens stay
    site: str = "mid"  # position in the block, one of SITES
    # number of tokens added here in masked training; None: tokens leave there, too
    when_masked: int | None = None
    tokens: int | None = None  # number of image tokens that stay; None: by the rule

    def __post_init__(self):
        check_choice("site", self.site, SITES)

    @property
    def attention_block(self) -> int:
        """Block of the attention read by the reducer; -1 at site "pre" of block 0."""
        # At site "pre" the reducer reads the attention of the block before.
        return self.block - 1 if self.site == "pre" else self.block


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """Token counts of a reducing step."""

    n_in: int  # image tokens before the step
    n_out: int  # image tokens after the step
    candidates: int | None = None  # merge candidates; None: all tokens
    stage: int = 1  # number of this step among the reducing steps, from 1
    # share of the model's blocks before the attention read by the reducer
    progress: float = 0.0
    # the counts in evaluation, for a step of masked training that removes no tokens
    evaluation: "StepCounts | None" = None


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """Token counts of one block, and its step."""

    attn_tokens: int  # tokens entering attention, prefix included
    mlp_tokens: int  # tokens entering the MLP, prefix included
    # set even where all tokens stay, because the reducer may have parameters
    step: Step | None = None
    # None where no token leaves or is masked
    counts: StepCounts | None = None
    # attention scores and projections read by reducers, here or at the next block
    reads: frozenset[str] = frozenset()


def counts_of_step(step: Step, n: int, n0: int, stage: int = 1) -> StepCounts | None:
    """Count a step's tokens; None if all tokens stay. Arguments: see `Rule.n_out`.

    Raises Unreachable unless the rule gives None or a whole number from 1 to `n`.
    """
    if step.tokens is None:
        n_out = step.rule.n_out(n, n0, stage)
    else:
        n_out = step.tokens if step.tokens < n else None
    if n_out is None:
        return None
    if not isinstance(n_out, numbers.Integral) or not 1 <= n_out <= n:
        raise Unreachable(
            f"the rule {type(step.rule).__name__} leaves {n_out!r} image tokens at "
            f"block {step.block}; it must leave 1 to {n}, or None"
        )
    return StepCounts(n, n_out, step.rule.candidates(n), stage)


def dense_plan(depth: int, tokens: int) -> tuple[BlockPlan, ...]:
    """Plan a dense model with `tokens` tokens, prefix included."""
    return (BlockPlan(tokens, tokens),) * depth


def build(
    depth: int,
    n0: int,
    steps: Sequence[Step],
    num_prefix: int = 1,
    masked: bool = False,
) -> tuple[BlockPlan, ...]:
    """Plan a model: one BlockPlan per block.

    n0: number of image tokens before the first block
    steps: in any order, at most one per block
    num_prefix: number of class, distillation and register tokens, which always stay
    masked: plan masked training; steps with `when_masked` then remove no tokens
    Raises InputError for a step outside the model, or two steps at one block.
    """
    by_block = {}
    for step in steps:
        if step.block not in range(depth):
            raise InputError(
                f"a step is at block {step.block!r}; the model has blocks 0 to "
                f"{depth - 1}"
            )
        if step.block in by_block:
            raise InputError(
                f"two steps are at block {step.block}; a block takes one step, and its "
                "reducer may both drop and merge"
            )
        by_block[step.block] = step
    plan = []
    reads = [frozenset()] * depth
    stage = 1
    n = n0  # image tokens in evaluation
    present = n0  # image tokens in this plan
    for block in range(depth):
        step = by_block.get(block)
        counts = None
        after = present
        if step:
            counts = counts_of_step(step, n, n0, stage)
        if counts:
            progress = max(step.attention_block, 0) / depth
            counts = dataclasses.replace(counts, progress=progress)
            n = counts.n_out
            stage += 1
            after = present + counts.n_out - counts.n_in
            evaluation = None
            if masked and step.when_masked is not None:  # no token is removed
                after = present + step.when_masked
                evaluation = counts
            counts = dataclasses.replace(
                counts, n_in=present, n_out=after, evaluation=evaluation
            )
            if step.attention_block >= 0:
                reads[step.attention_block] |= step.reducer.reads
        before = present
        if step and step.site == "pre":
            before = after
        layer = BlockPlan(
            attn_tokens=before + num_prefix,
            mlp_tokens=after + num_prefix,
            step=step,
            counts=counts,
        )
        plan.append(layer)
        present = after
    # `reads` is complete only now: the next block's step may read a block's attention.
    complete = []
    for layer, names in zip(plan, reads, strict=True):
        complete.append(dataclasses.replace(layer, reads=names))
    return tuple(complete)
