"""How many tokens each block keeps: rules and plans, before anything is traced.

A method has `Step`s. A `Rule` says how many image tokens a step leaves, and `build`
makes a `BlockPlan` for each block.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.errors import InputError

# "pre": before the block; "attention": in it, after the weights of all tokens and
# before these are applied to values; "mid": between attention and MLP
SITES = ("pre", "attention", "mid")


def ceil(x):
    """Ceiling that binary rounding cannot change: 0.07 * 100 is 7, not 8."""
    return math.ceil(x - 1e-9)


def floor(x):
    """Floor that binary rounding cannot change: 0.7 * 90 is 63, not 62."""
    return math.floor(x + 1e-9)


class Rule:
    """Base of counting rules, which are frozen dataclasses."""

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        """Number of image tokens after the step; None where all of them stay.

        n: number of image tokens before the step
        n0: number of image tokens before the first step
        stage: number of this step among those that reduce tokens, from 1
        """
        raise NotImplementedError

    def fewest(self, n: int, stage: int) -> int:
        """The fewest of `n` tokens that a list of `counts` may leave at this step."""
        return 1

    def candidates(self, n: int) -> int | None:
        """Number of tokens among which a merge looks for pairs; None: all tokens."""
        return None


class AtMostHalf(Rule):
    """Base of rules for merges in pairs, in which at most half of the tokens leave."""

    def removed(self, n: int) -> int:
        """How many of `n` tokens should leave, even if it is more than half."""
        raise NotImplementedError

    def n_out(self, n, n0, stage):
        removed = min(self.removed(n), self.half(n))
        return None if removed <= 0 else n - removed

    def fewest(self, n, stage):
        return n - self.half(n)

    def half(self, n):
        """The most tokens that can leave: half of the candidates."""
        candidates = self.candidates(n)
        if candidates is None:
            candidates = n
        return candidates // 2


@dataclasses.dataclass(frozen=True)
class Keep(Rule):
    """ceil(rate * n) tokens stay, at least 1."""

    rate: float
    fused: bool = False  # whether one more token is the sum of those that leave

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
    packages: bool = False  # whether each step so far has added one more token

    def n_out(self, n, n0, stage):
        count = max(1, floor(self.rate * n0))
        if self.packages:
            count += stage
        return None if count >= n else count

    def fewest(self, n, stage):
        return 1 + stage if self.packages else 1


@dataclasses.dataclass(frozen=True)
class Remove(AtMostHalf):
    """`count` tokens leave, or half of all where that is less."""

    count: int

    def removed(self, n):
        return self.count


@dataclasses.dataclass(frozen=True)
class MergeTo(AtMostHalf):
    """As many tokens leave as by `Keep(rate)`, or half of all where that is less."""

    rate: float

    def removed(self, n):
        return n - max(1, ceil(self.rate * n))


@dataclasses.dataclass(frozen=True)
class Merge(AtMostHalf):
    """ImagePiece's rule: tokens merge among the floor(candidate_ratio * n) candidates.

    ceil(merge_ratio * (n + 1)) tokens leave: the published arithmetic counts the class
    token, so that 16 of 197 tokens leave.
    """

    merge_ratio: float
    candidate_ratio: float

    def candidates(self, n):
        return floor(self.candidate_ratio * n)

    def removed(self, n):
        return ceil(self.merge_ratio * (n + 1))


@dataclasses.dataclass(frozen=True)
class Fixed(Rule):
    """`tokens` tokens stay, whatever n is."""

    tokens: int

    def n_out(self, n, n0, stage):
        return self.tokens


class Unreachable(InputError):
    """Numbers of tokens that the steps of a method cannot leave.

    A search for a cost ends there.
    """


@dataclasses.dataclass(frozen=True)
class Step:
    """A reduction of tokens at one block."""

    block: int
    # decides which tokens leave: a `reducers.Reducer`; a Flax module, without
    # parameters, if it learns
    reducer: Any
    rule: Rule  # says how many tokens stay
    site: str = "mid"  # where in the block it takes place: one of SITES
    # number of tokens that masked training adds here; None: it removes tokens, too
    when_masked: int | None = None
    tokens: int | None = None  # number of image tokens that stay; None: the rule's

    def __post_init__(self):
        check_choice("site", self.site, SITES)

    @property
    def attention_block(self) -> int:
        """The block whose attention the reducer reads; -1 where there is none.

        At site "pre" that is the block before this one.
        """
        return self.block - 1 if self.site == "pre" else self.block


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """The numbers of tokens of a step that reduces them."""

    n_in: int  # image tokens before the step
    n_out: int  # image tokens after the step
    candidates: int | None = None  # tokens among which it merges; None: all
    stage: int = 1  # number of this step among those that reduce tokens, from 1
    progress: float = 0.0  # share of the model's blocks before the attention it reads
    # The counts in evaluation; None but in masked training, which removes no tokens.
    evaluation: "StepCounts | None" = None


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The numbers of tokens of one block, and the step that reduces them."""

    attn_tokens: int  # tokens that enter attention, prefix included
    mlp_tokens: int  # tokens that enter the MLP, prefix included
    # The step, even where all tokens stay, as its reducer may have parameters.
    step: Step | None = None
    # The numbers of the step; None where no token leaves or is masked.
    counts: StepCounts | None = None
    # Scores of this block's attention that reducers read, here or at the next block.
    reads: frozenset[str] = frozenset()


def counts_of_step(step: Step, n: int, n0: int, stage: int = 1) -> StepCounts | None:
    """The StepCounts of a step; None where all tokens stay.

    n, n0, stage: as `Rule.n_out` takes them
    Raises Unreachable for a rule whose result is neither None nor a whole number from
        1 to `n`.
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
    """The plan of a model whose blocks keep all tokens, prefix included."""
    return (BlockPlan(tokens, tokens),) * depth


def build(
    depth: int,
    n0: int,
    steps: Sequence[Step],
    num_prefix: int = 1,
    masked: bool = False,
) -> tuple[BlockPlan, ...]:
    """The plan of a model: a BlockPlan for each block.

    depth: number of blocks of the model
    n0: number of image tokens before the first block
    steps: reductions in any order, at most one for each block
    num_prefix: number of class, distillation and register tokens, which all stay
    masked: whether it is the plan of masked training, in which steps with `when_masked`
        remove no tokens
    Raises InputError for a step outside the model and for two steps at one block.
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
                f"two steps are at block {step.block}; a block must have one, whose "
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
    # The step of the next block may read a block's attention, too.
    complete = []
    for layer, names in zip(plan, reads, strict=True):
        complete.append(dataclasses.replace(layer, reads=names))
    return tuple(complete)
