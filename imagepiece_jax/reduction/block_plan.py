"""Token counts per block: rules, steps and plans, before anything is traced.

A method makes steps (`Step`). A step's `Rule` sets how many image tokens stay.
`plan_blocks` turns steps into one `BlockPlan` per block.
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


def exact_ceil(x: float) -> int:
    """Ceiling, immune to binary rounding: 0.07 * 100 is 7, not 8."""
    return math.ceil(x - 1e-9)


def exact_floor(x: float) -> int:
    """Floor, immune to binary rounding: 0.7 * 90 is 63, not 62."""
    return math.floor(x + 1e-9)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Base of counting rules, frozen dataclasses; itself, for a step with `tokens`."""

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        """Image token count after the step, or None if all tokens stay.

        n, n0: image tokens before this step, and before the first step
        stage: number of this step among the reducing steps, from 1
        """
        raise NotImplementedError

    def fewest_tokens(self, n: int, stage: int) -> int:
        """Lower limit for an entry of `counts` at this step, out of `n` tokens."""
        return 1

    def count_candidates(self, n: int) -> int | None:
        """Number of merge candidates; None: all tokens."""
        return None


class RemoveAtMostHalf(Rule):
    """Base of rules for pairwise merges: at most half the tokens leave."""

    def count_removed(self, n: int) -> int:
        """Number of tokens to remove from `n`, before the limit of one half."""
        raise NotImplementedError

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        num_removed = min(self.count_removed(n), self.half_candidates(n))
        return None if num_removed <= 0 else n - num_removed

    def fewest_tokens(self, n: int, stage: int) -> int:
        return n - self.half_candidates(n)

    def half_candidates(self, n: int) -> int:
        """Half the candidates' number: the most tokens that can leave."""
        num_candidates = self.count_candidates(n)
        if num_candidates is None:
            num_candidates = n
        return num_candidates // 2


@dataclasses.dataclass(frozen=True)
class KeepShare(Rule):
    """ceil(rate * n) tokens stay, at least 1."""

    rate: float
    fused: bool = False  # whether one more token sums up the leaving tokens

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        count = max(1, exact_ceil(self.rate * n))
        if count == n:
            return None
        return count + 1 if self.fused else count

    def fewest_tokens(self, n: int, stage: int) -> int:
        return 2 if self.fused else 1


@dataclasses.dataclass(frozen=True)
class KeepInitialShare(Rule):
    """floor(rate * n0) tokens stay, at least 1."""

    rate: float
    packages: bool = False  # whether every step so far has added one more token

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        count = max(1, exact_floor(self.rate * n0))
        if self.packages:
            count += stage
        return None if count >= n else count

    def fewest_tokens(self, n: int, stage: int) -> int:
        return 1 + stage if self.packages else 1


@dataclasses.dataclass(frozen=True)
class RemoveCount(RemoveAtMostHalf):
    """`count` tokens leave, at most half."""

    count: int

    def count_removed(self, n: int) -> int:
        return self.count


@dataclasses.dataclass(frozen=True)
class KeepAtLeastHalf(RemoveAtMostHalf):
    """ceil(rate * n) tokens stay, at least half.

    counts_class_token: n includes the class token, which stays
    """

    rate: float
    counts_class_token: bool = False

    def count_removed(self, n: int) -> int:
        num_tokens = n + self.counts_class_token
        return num_tokens - max(1, exact_ceil(self.rate * num_tokens))


@dataclasses.dataclass(frozen=True)
class MergeCandidates(RemoveAtMostHalf):
    """ImagePiece's rule: ceil(merge_ratio * (n + 1)) tokens leave, merged in pairs.

    Pairs are among floor(candidate_ratio * n) candidates: at most half of them leave.
    """

    merge_ratio: float
    candidate_ratio: float

    def count_candidates(self, n: int) -> int:
        return exact_floor(self.candidate_ratio * n)

    def count_removed(self, n: int) -> int:
        # The published arithmetic counts the class token: 16 of 197 tokens leave.
        return exact_ceil(self.merge_ratio * (n + 1))


@dataclasses.dataclass(frozen=True)
class KeepFixed(Rule):
    """`tokens` tokens stay, for every n; a step reduces even if n is `tokens`."""

    tokens: int

    def n_out(self, n: int, n0: int, stage: int) -> int:
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
    rule: Rule = Rule()  # sets how many tokens stay
    site: str = "mid"  # position in the block, one of SITES
    # in masked training nothing leaves here, and this many tokens are appended; None:
    # tokens leave as in evaluation
    added_when_masked: int | None = None
    tokens: int | None = None  # number of image tokens that stay; None: by the rule

    def __post_init__(self) -> None:
        check_choice("site", self.site, SITES)

    def n_out(self, n: int, n0: int, stage: int) -> int | None:
        """Image token count after the step by `tokens` or the rule, see `Rule`."""
        if self.tokens is None:
            return self.rule.n_out(n, n0, stage)
        return self.tokens if self.tokens < n else None

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
    attention_reads: frozenset[str] = frozenset()

    @property
    def reducer(self) -> Any:
        """The step's reducer, even if it reduces nothing here; None without a step."""
        return self.step.reducer if self.step else None

    @property
    def site(self) -> str | None:
        """Where the block reduces, one of SITES; None if all tokens stay."""
        return self.step.site if self.step and self.counts else None


def choose_steps(
    counts: Sequence[int], steps: Sequence[Step], n: int, exact: bool = True
) -> list[Step]:
    """Choose from `steps` where `counts` fall, and set the tokens that stay there.

    counts: image tokens after each block, which do not rise; `n` before the first
    exact: False: where a rule must leave more tokens than `counts`, more tokens stay
    Raises Unreachable where no step can leave the counts.
    """
    chosen_steps = []
    for index, count in enumerate(counts):
        if count >= n:
            continue
        step = next((step for step in steps if step.block == index), None)
        least_count = n  # without a step here
        if step is not None:
            least_count = step.rule.fewest_tokens(n, stage=len(chosen_steps) + 1)
        if step is None or (exact and count < least_count):
            raise Unreachable(
                f"counts has {count} tokens after block {index}, where the method's "
                f"steps must leave at least {least_count} of {n}"
            )
        n_out = max(count, least_count)
        if n_out < n:
            chosen_steps.append(dataclasses.replace(step, tokens=n_out))
            n = n_out
    return chosen_steps


def _count_step(
    step: Step, n: int, n0: int, stage: int, depth: int
) -> StepCounts | None:
    """Count the tokens of a step in evaluation: StepCounts, or None if all stay.

    Raises Unreachable unless the rule gives None, or a whole number that it can leave.
    """
    n_out = step.n_out(n, n0, stage)
    if n_out is None:
        return None
    if not isinstance(n_out, numbers.Integral) or not 1 <= n_out <= n:
        rule = f"{type(step.rule).__name__} at block {step.block}"
        raise Unreachable(f"{rule} leaves {n_out!r} tokens, not 1 to {n}, or None")
    progress = max(step.attention_block, 0) / depth
    return StepCounts(n, n_out, step.rule.count_candidates(n), stage, progress)


def plan_blocks(
    depth: int,
    n0: int,
    steps: Sequence[Step],
    num_prefix: int = 1,
    masked: bool = False,
) -> tuple[BlockPlan, ...]:
    """Plan a model: one BlockPlan per block.

    n0: number of image tokens before the first block
    steps: in any order, at most one per block; (): a dense model
    num_prefix: number of class, distillation and register tokens, which always stay
    masked: plan masked training; steps with `added_when_masked` then remove no tokens
    Raises InputError for a step outside the model, or two steps at one block.
    """
    block_steps: list[Step | None] = [None] * depth
    for step in steps:
        if step.block not in range(depth) or block_steps[step.block]:
            raise InputError(
                f"a step is at block {step.block!r}; each of the model's blocks, 0 to "
                f"{depth - 1}, takes one step"
            )
        block_steps[step.block] = step
    plan = []
    attention_reads: list[frozenset[str]] = [frozenset()] * depth
    n = n0  # image tokens in evaluation
    num_extra = 0  # tokens of masked training that evaluation does not have
    stage = 1
    for step in block_steps:
        attn_tokens = n + num_extra + num_prefix
        # `counts` are the step's in evaluation, until masked training replaces them.
        counts = _count_step(step, n, n0, stage, depth) if step else None
        if step and counts:
            n = counts.n_out
            stage += 1
            if masked:
                n_in = counts.n_in + num_extra
                evaluation = None
                if step.added_when_masked is not None:
                    evaluation = counts
                    num_extra += counts.n_in - counts.n_out + step.added_when_masked
                counts = dataclasses.replace(
                    counts, n_in=n_in, n_out=n + num_extra, evaluation=evaluation
                )
            if step.attention_block >= 0:
                attention_reads[step.attention_block] |= step.reducer.attention_reads
        mlp_tokens = n + num_extra + num_prefix
        if step and step.site == "pre":
            attn_tokens = mlp_tokens
        plan.append(BlockPlan(attn_tokens, mlp_tokens, step, counts))
    # A step at site "pre" has added its reads to the block before.
    for index, reads in enumerate(attention_reads):
        plan[index] = dataclasses.replace(plan[index], attention_reads=reads)
    return tuple(plan)
