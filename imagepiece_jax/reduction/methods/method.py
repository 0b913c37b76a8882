"""Base classes of methods: fields, steps, and hooks for training.

`Method` is the base. `InStages` keeps a share of the tokens at some blocks, and
`RemovalPerBlock` removes a number of tokens in every block.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from imagepiece_jax.common import checks
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import schedules
from imagepiece_jax.reduction.block_plan import (
    BlockPlan,
    KeepInitialShare,
    Rule,
    Step,
    choose_steps,
    plan_blocks,
)
from imagepiece_jax.reduction.reducers import METRICS, SCORES

# {field of a method: its values}; docs/results/tried.md compares the scores
CHOICES = {"score": tuple(SCORES), "metric": METRICS}


def training_field(default: float, **bounds: Any) -> Any:
    """Declare a `checks.option` that only training reads; equality ignores it."""
    return checks.option(default, compare=False, **bounds)


def check_entries(name: str, values: Any, **bounds: Any) -> None:
    """Check a tuple of whole numbers; bounds are those of `check_range`."""
    is_tuple = type(values) is tuple  # not a text or a number, of a mistaken call
    checks.refuse_any((not is_tuple, f"{name} is {values!r}; it must be a tuple"))
    for value in values:
        checks.check_range(f"an entry of {name}", value, whole=True, **bounds)


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """Training settings for a group of parameters."""

    # function (scheduled rate, peak rate) -> rate; None: the scheduled rate
    lr: Callable[[Any, float], Any] | None = None
    frozen_epochs: float = 0.0  # first epochs without updates; may be infinite

    @property
    def is_frozen(self) -> bool:
        return self.frozen_epochs == float("inf")


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Model facts for method defaults."""

    depth: int  # number of blocks
    embed_dim: int
    patches: int  # number of image tokens before the first block
    class_token: bool = True
    pool: str = "token"  # read by the head: "token", "mean" or "map"
    classes: int = 1000  # 0: the model has no head
    name: str | None = None  # name of a public model


@dataclasses.dataclass(frozen=True)
class Method:
    """A token reduction method; a reduction's text sets its fields.

    `Method(macs=0.5)` is a placeholder: `replace_placeholder` replaces it by the
    method chosen for the model.
    """

    # In subclasses every field has a default. Training-only fields have compare=False.
    # A `checks.option` is checked, and so are fields named in CHOICES.
    #
    # Methods with their own training override some class attributes below by a value
    # or a function.

    # names of the fields that set token counts and blocks
    amount_fields: ClassVar[tuple[str, ...]] = ()
    # the field among `amount_fields` set by the search for a cost; unused with `macs`
    ratio_field: ClassVar[str | None] = None
    needs_teacher: ClassVar[bool] = False  # whether training needs a frozen dense model
    # whether attention is proportional, if neither reduction nor model sets it
    default_prop_attn: ClassVar[bool] = False
    # function (outputs, teacher_outputs, plan) -> {name: further loss term}
    loss: ClassVar[Any] = None
    # function (path such as "blocks_3/attn/q/kernel") -> ParamGroup
    param_groups: ClassVar[Any] = None
    # function (epoch) -> keep rate in this epoch
    rate_at: ClassVar[Any] = None

    _: dataclasses.KW_ONLY
    # Cost as a share of the dense model's MACs. `models.create` finds the ratio
    # with the nearest cost, for the schedule in `counts` or the method's own schedule.
    macs: float | None = None
    # Image token counts after the blocks, or a schedule, which needs `macs`.
    counts: str | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            # Lists have no hash, and NumPy numbers print differently.
            value = checks.replace_lists(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if field.name in CHOICES:
                checks.check_choice(field.name, value, CHOICES[field.name])
        checks.check_options(self)
        if self.macs is not None or type(self) is Method:  # a placeholder has a cost
            checks.check_range("macs", self.macs, above=0, most=1)
        if self.macs is not None and self.ratio_field is not None:
            self._check_default(self.ratio_field, "macs")
        if self.counts is None:
            return
        schedules.check_counts(self.counts)
        for name in self.amount_fields:
            self._check_default(name, "counts")
        if isinstance(self.counts, str) != (self.macs is not None):
            sentence = "a schedule needs macs, and a list excludes macs"
            raise InputError(f"counts is {self.counts!r}; {sentence}")

    def _check_default(self, name, rival):
        is_set = getattr(self, name) != getattr(type(self), name)
        checks.refuse_any((is_set, f"{name} and {rival} both decide the token counts"))

    def steps(self, facts: ModelFacts) -> Sequence[Step]:
        """Make the method's Steps for a model, one for each block where tokens leave.

        With `counts`, make a Step for each block where tokens could leave: `plan`
        chooses where the counts fall, and sets how many tokens stay.
        """
        raise NotImplementedError

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        """Scale the method's own schedule. By default, its shares get a power.

        ratio: from 0 (all tokens stay) to 1 (as few as possible)
        """
        plan = self.plan(facts)  # no prefix, so counts are image tokens
        shares = [block_plan.mlp_tokens / facts.patches for block_plan in plan]
        scaled_shares = schedules.powered_shares(shares, ratio)
        counts = schedules.shares_to_counts(scaled_shares, facts.patches)
        return self.with_counts(counts, facts)

    def score_for(self, facts: ModelFacts) -> str:
        """Return the field `score`, with a score of the model in place of "auto"."""
        score = vars(self)["score"]  # a field of the methods that call this
        if score != "auto":
            return score
        return "class" if facts.class_token else "received"

    def at_ratio(self, ratio: float, facts: ModelFacts) -> Self:
        """Replace `macs`: scale the schedule in `counts`, or the method's own.

        ratio: from 0 (all tokens stay) to 1 (as few as possible), for a search by cost
        """
        if self.counts is None:
            return dataclasses.replace(self, macs=None).scale_schedule(ratio, facts)
        schedule = str(self.counts)  # `macs` excludes a list
        counts = schedules.scheduled_counts(schedule, facts.depth, facts.patches, ratio)
        return self.with_counts(counts, facts)

    def with_counts(self, counts: Sequence[int], facts: ModelFacts) -> Self:
        """Set `counts`, raised where the method's steps must leave more tokens."""
        defaults = {name: getattr(type(self), name) for name in self.amount_fields}
        method = dataclasses.replace(self, macs=None, counts=counts, **defaults)
        plan = method.plan(facts, exact=False)
        # No prefix is planned, so these are image tokens.
        reached_counts = [block_plan.mlp_tokens for block_plan in plan]
        return dataclasses.replace(method, counts=reached_counts)

    def plan(
        self,
        facts: ModelFacts,
        num_prefix: int = 0,
        masked: bool = False,
        exact: bool = True,
    ) -> tuple[BlockPlan, ...]:
        """Plan a model's blocks by `counts`, or by the method's own fields.

        num_prefix, masked: see `block_plan.plan_blocks`
        exact: see `block_plan.choose_steps`
        Raises InputError for counts outside the reach of method or model.
        """
        depth = facts.depth
        n0 = facts.patches
        counts: Any = self.counts  # a list, because `at_ratio` replaces schedules
        if counts is None:
            return plan_blocks(depth, n0, self.steps(facts), num_prefix, masked)
        if len(counts) != depth or counts[0] > n0:
            limits = f"{depth} entries, one per block, of at most {n0}"
            raise InputError(f"counts is {counts}; it must have {limits}")
        steps = ()
        if counts[-1] < n0:
            steps = choose_steps(counts, self.steps(facts), n0, exact)
        return plan_blocks(depth, n0, steps, num_prefix, masked)


@dataclasses.dataclass(frozen=True)
class KeepingShare(Method):
    """Base of methods that keep the share `keep_rate` of the tokens."""

    amount_fields = ("keep_rate",)
    ratio_field = "keep_rate"

    keep_rate: float = checks.option(0.7, least=0, most=1)

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        # Six digits, which a reduction's text shows
        return dataclasses.replace(self, keep_rate=round(1 - ratio, 6))


@dataclasses.dataclass(frozen=True)
class InStages(KeepingShare):
    """Base of methods that keep the share `keep_rate` of the tokens at some blocks."""

    amount_fields = ("keep_rate", "blocks")

    blocks: tuple[int, ...] = (3, 6, 9)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_entries("blocks", self.blocks)

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        blocks = fit_blocks(self, facts.depth)
        return dataclasses.replace(super().scale_schedule(ratio, facts), blocks=blocks)

    def stage_steps(
        self, facts: ModelFacts, reducer: Any, rule: Rule | None = None, **fields: Any
    ) -> tuple[Step, ...]:
        """Make a Step for every block in `blocks`; with `counts`, for every block.

        rule: None: keep_rate**s of the initial tokens stay at the s-th block
        fields: further fields of the Steps
        """
        blocks = self.blocks if self.counts is None else range(facts.depth)
        steps = []
        for stage, block in enumerate(sorted(blocks), start=1):
            stage_rule = rule or KeepInitialShare(self.keep_rate**stage)
            steps.append(Step(block, reducer, stage_rule, **fields))
        return tuple(steps)


def fit_blocks(method: Any, depth: int) -> tuple[int, ...]:
    """Move a method's default `blocks` to the same shares of a smaller depth."""
    # Default blocks are for a depth of 12. Blocks stay if they are not the defaults, or
    # fit the depth. They also stay if two blocks would coincide, or the first would be
    # block 0.
    blocks = method.blocks
    if blocks != type(method).blocks or max(blocks, default=0) < depth:
        return blocks
    fitted_blocks = tuple(block * depth // 12 for block in blocks)
    if 0 < min(fitted_blocks) and len({*fitted_blocks}) == len(fitted_blocks):
        return fitted_blocks
    return blocks


class RemovalPerBlock(Method):
    """Base of methods that remove `r` tokens per block."""

    default_prop_attn = True
    ratio_field = "r"

    def removed_counts(self, depth: int) -> Sequence[int]:
        """Token counts to remove, per block."""
        return (vars(self)["r"],) * depth  # a field of the subclasses

    def scale_schedule(self, ratio: float, facts: ModelFacts) -> Self:
        # Proportions between blocks stay. With ratio 1 the block with the largest count
        # would lose all tokens.
        removed_counts = self.removed_counts(facts.depth)
        if not any(removed_counts):  # no proportions: all blocks lose alike
            removed_counts = (1,) * facts.depth
        scale = ratio * facts.patches / max(removed_counts)
        lost_counts = itertools.accumulate(count * scale for count in removed_counts)
        n0 = facts.patches
        counts = [max(1, schedules.round_half_up(n0 - lost)) for lost in lost_counts]
        return self.with_counts(counts, facts)
