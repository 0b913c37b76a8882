"""Token counts of every block, in plain Python, before anything is traced.

A method names `Step`s; `build` turns them into a `LayerPlan` a block, which all read.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from imagepiece_jax.common.fields import is_integer
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.token_counts import Rule

# "pre": before the block; "attention": in it, between the scores of all tokens and the
# values of those that are left; "mid": between attention and MLP
SITES = ("pre", "attention", "mid")


@dataclasses.dataclass(frozen=True)
class Step:
    """One reduction: at `block`, to the count of `rule`, decided by `reducer`."""

    block: int
    reducer: Any  # a frozen dataclass or an unbound Flax module (`reducers.Reducer`)
    rule: Rule
    site: str = "mid"  # one of SITES
    # tokens that the step adds in masked training; None: it removes tokens there, too
    when_masked: int | None = None
    tokens: int | None = None  # image tokens that it leaves, in place of the rule's

    @property
    def attention_block(self) -> int:
        """The block whose attention its reducer reads, -1 where there is none before.

        At site "pre" that is the block before the step's.
        """
        return self.block - 1 if self.site == "pre" else self.block


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of a step that changes something."""

    n_in: int  # image tokens before it
    n_out: int  # image tokens after it
    candidates: int | None = None  # of a merge
    stage: int = 1  # its number among the steps that change something
    progress: float = 0.0  # share of the blocks before the attention that it reads
    # Its counts in evaluation, for a step that removes nothing in masked training.
    evaluation: "Counts | None" = None


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """Tokens of one block, and the step that reduces them."""

    attn_tokens: int  # into its attention, prefix included
    mlp_tokens: int  # into its MLP, prefix included
    # A step that changes nothing is there, too, as it may have parameters.
    step: Step | None = None
    # The numbers of its step, or None where no token leaves or is masked.
    counts: Counts | None = None
    # What its own step, or that before the next block, reads of its attention.
    reads: frozenset[str] = frozenset()


def count(step: Step, n: int, n0: int, stage: int = 1) -> Counts | None:
    """Counts of a step, or None where it changes nothing.

    n: image tokens before it; n0: before any step; stage: its number among the steps
    that change something, from 1.

    Raises InputError for a rule that leaves no token, or no whole number of them.
    """
    if step.tokens is None:
        n_out = step.rule.n_out(n, n0, stage)
    else:
        n_out = step.tokens if step.tokens < n else None
    if n_out is None:
        return None
    if not is_integer(n_out) or n_out < 1:
        raise InputError(
            f"has the rule {type(step.rule).__name__}, which leaves {n_out!r} "
            f"image tokens at block {step.block}",
            value=n_out,
            allowed="1, 2, 3, .., or None",
        )
    return Counts(n, n_out, step.rule.candidates(n), stage)


def build(
    depth: int,
    n0: int,
    steps: Sequence[Step],
    num_prefix: int = 1,
    masked: bool = False,
) -> tuple[LayerPlan, ...]:
    """Token counts of every block.

    depth: blocks of the model
    n0: image tokens that enter block 0
    steps: in any order, at most one a block
    num_prefix: class, distillation and register tokens, which no step touches
    masked: the plan of masked training, where a step with `when_masked` removes nothing
    Raises InputError for a step outside the model and for two steps at one block.
    """
    at = {}
    for step in steps:
        if not is_integer(step.block) or not 0 <= step.block < depth:
            raise InputError(
                f"has a step at block {step.block!r}",
                value=step.block,
                allowed=f"blocks 0 to {depth - 1} of the model",
            )
        if step.block in at:
            raise InputError(
                f"has two steps at block {step.block}",
                value=step.block,
                allowed="one step per block (its reducer may both drop and merge)",
            )
        at[step.block] = step
    plan = []
    reads = [frozenset()] * depth
    stage = 1
    n = n0  # tokens in evaluation
    present = n0  # tokens in this plan
    for block in range(depth):
        step = at.get(block)
        counts = None
        if step:
            counts = count(step, n, n0, stage)
        if counts:
            n = counts.n_out
            stage += 1
            progress = max(step.attention_block, 0) / depth
            counts = dataclasses.replace(counts, progress=progress)
            change = counts.n_out - counts.n_in
            evaluation = None
            if masked and step.when_masked is not None:
                change = step.when_masked
                evaluation = counts
            counts = dataclasses.replace(
                counts,
                n_in=present,
                n_out=present + change,
                evaluation=evaluation,
            )
            if step.attention_block >= 0:
                reads[step.attention_block] |= step.reducer.reads
        after = counts.n_out if counts else present
        before = after if step and step.site == "pre" else present
        layer = LayerPlan(
            attn_tokens=before + num_prefix,
            mlp_tokens=after + num_prefix,
            step=step,
            counts=counts,
        )
        plan.append(layer)
        present = after
    # What reads a block's attention is known only after the block behind it.
    complete = []
    for layer, names in zip(plan, reads, strict=True):
        complete.append(dataclasses.replace(layer, reads=names))
    return tuple(complete)
