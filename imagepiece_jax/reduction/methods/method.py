"""Base classes of methods: fields, steps, and hooks for training.

`Method` is the base. `InStages` keeps a share of the tokens at some blocks, and
`Removal` removes a number of tokens in every block.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from imagepiece_jax.common.checks import (
    as_tuple,
    check_choice,
    check_range,
    check_share,
)
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import schedules
from imagepiece_jax.reduction.block_plan import (
    BlockPlan,
    KeepInitial,
    Step,
    Unreachable,
    build,
)
from imagepiece_jax.reduction.reducers import METRICS, SCORES


def of_training(default: float) -> Any:
    """Declare a field that only training reads; equality ignores it."""
    return dataclasses.field(default=default, compare=False)


def check_each(name: str, values: Any, **bounds: Any) -> None:
    """Raise InputError unless a value is a tuple of whole numbers within bounds.

    bounds: keywords of `check_range`
    """
    if not isinstance(values, tuple):
        raise InputError(f"{name} is {values!r}; it must be a tuple such as (3, 6, 9)")
    for value in values:
        check_range(f"an entry of {name}", value, whole=True, **bounds)


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

    `Method(macs=0.5)` is a placeholder: `recommended` replaces it by the method chosen
    for the model.
    """

    # In subclasses every field has a default. Training-only fields have compare=False.
    # A field `score` is one of `reducers.SCORES` (compared in docs/results/scores.md).
    # A field `metric` is one of METRICS, the feature by which tokens are compared.
    #
    # Methods with their own training override some class attributes below by a value
    # or a function.

    # names of the fields that set token counts and blocks
    amounts: ClassVar[tuple[str, ...]] = ()
    # the field among `amounts` set by the search for a cost; unused with `macs`
    ratio_field: ClassVar[str | None] = None
    needs_teacher: ClassVar[bool] = False  # whether training needs a frozen dense model
    # whether attention is proportional, if neither reduction nor model sets it
    default_prop_attn: ClassVar[bool] = False
    # function (outputs, teacher_outputs, plan) -> {name: further loss term}
    loss: ClassVar[Callable[..., dict[str, Any]] | None] = None
    # function (path such as "blocks_3/attn/q/kernel") -> ParamGroup
    param_groups: ClassVar[Callable[[str], ParamGroup] | None] = None
    # function (epoch) -> keep rate in this epoch
    rate_at: ClassVar[Callable[[int], float] | None] = None

    _: dataclasses.KW_ONLY
    # Cost as a share of the dense model's MACs. `models.reduction_plan` finds the ratio
    # with the nearest cost, for the schedule in `counts` or the method's own schedule.
    macs: float | None = None
    # Image token counts after the blocks, or a schedule, which needs `macs`.
    counts: str | tuple[int, ...] | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            # Lists have no hash, and NumPy numbers print differently.
            value = as_tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if hasattr(self, "score"):
            check_choice("score", self.score, tuple(SCORES))
        if hasattr(self, "metric"):
            check_choice("metric", self.metric, METRICS)
        if self.macs is not None or type(self) is Method:
            check_share("macs", self.macs)
        if self.macs is not None and self.ratio_field is not None:
            self._check_default(self.ratio_field, "macs")
        if self.counts is None:
            return
        schedules.check_counts(self.counts)
        for name in self.amounts:
            self._check_default(name, "counts")
        if isinstance(self.counts, str) != (self.macs is not None):
            raise InputError(
                f"counts is {self.counts!r}; a schedule needs macs, and a list of "
                "counts excludes macs"
            )

    def _check_default(self, name, other):
        """Raise InputError if a field is set that `other` sets, too."""
        value = getattr(self, name)
        if value != getattr(type(self), name):
            raise InputError(
                f"{name} is {value!r}, but {other} also decides the token counts; give "
                "one of the two"
            )

    def steps(self, depth: int) -> Sequence[Step]:
        """Make the Steps for a model with `depth` blocks from the method's fields."""
        raise NotImplementedError

    def step_at(self, block: int, depth: int, tokens: int) -> Step:
        """Make the Step for a block where `counts` leaves `tokens` image tokens.

        Raises Unreachable for a block without a step of the method.
        """
        # By default this is the method's own step at the block. Only subclasses with
        # reducers for a fixed token count, such as TokenLearner, read `tokens`.
        own = {"counts": None, "macs": None}
        if hasattr(self, "blocks"):
            own["blocks"] = (block,)
        steps = _steps_of(dataclasses.replace(self, **own), depth)
        for step in steps:
            if step.block == block:
                return step
        blocks = ", ".join(str(step.block) for step in steps)
        raise Unreachable(
            f"counts change at block {block}, but the method's blocks are "
            f"{blocks or 'none'}"
        )

    def at_ratio(self, ratio: float, depth: int, patches: int) -> "Method":
        """Scale the schedule in `counts` if there is one, else the method's own fields.

        ratio: from 0 (all tokens stay) to 1 (as few as possible), for a search by cost
        """
        free = dataclasses.replace(self, macs=None, counts=None)
        if self.counts is None:
            return free.scaled(ratio, depth, patches)
        counts = schedules.counts_of(self.counts, depth, patches, ratio)
        return free.within_reach(counts, depth, patches)

    def scaled(self, ratio: float, depth: int, patches: int) -> "Method":
        """Scale the method's own fields to keep fewer or more tokens, by `ratio`."""
        if hasattr(self, "keep_rate"):
            return dataclasses.replace(self, keep_rate=round(1 - ratio, 6))
        plan = self.plan(depth, patches)  # no prefix, so counts are image tokens
        shares = [block.mlp_tokens / patches for block in plan]
        counts = []
        for share in schedules.powered_shares(shares, ratio):
            counts.append(max(1, schedules.rounded(share * patches)))
        return self.within_reach(counts, depth, patches)

    def within_reach(self, counts: Sequence[int], depth: int, patches: int) -> "Method":
        """Set `counts`, raised where the method's steps must leave more tokens."""
        reached = []
        n = patches
        stage = 1
        for block, tokens in enumerate(counts):
            if tokens < n:
                step = self.step_at(block, depth, tokens)
                tokens = max(tokens, step.rule.fewest(n, stage))
                if tokens < n:
                    stage += 1
                    n = tokens
            reached.append(n)
        defaults = {name: getattr(type(self), name) for name in self.amounts}
        return dataclasses.replace(self, macs=None, counts=tuple(reached), **defaults)

    def plan(
        self, depth: int, patches: int, prefix: int = 0, masked: bool = False
    ) -> tuple[BlockPlan, ...]:
        """Plan a model's blocks by `counts`, or by the method's own fields.

        patches: number of image tokens before the first block
        prefix, masked: see `block_plan.build`
        Raises InputError for counts outside the reach of method or model.
        """
        if self.counts is None:
            return build(depth, patches, self.steps(depth), prefix, masked)
        if len(self.counts) != depth or self.counts[0] > patches:
            raise InputError(
                f"counts is {self.counts}; it must have {depth} entries, one per "
                f"block, of at most {patches} tokens, the patch count"
            )
        steps = []
        n = patches
        for block, tokens in enumerate(self.counts):
            if tokens == n:
                continue
            step = self.step_at(block, depth, tokens)
            fewest = step.rule.fewest(n, stage=len(steps) + 1)
            if tokens < fewest:
                raise Unreachable(
                    f"counts has {tokens} tokens after block {block}; of {n} before it "
                    f"at least {fewest} must stay"
                )
            steps.append(dataclasses.replace(step, tokens=tokens))
            n = tokens
        return build(depth, patches, steps, prefix, masked)

    def for_model(self, model: ModelFacts) -> "Method":
        """Fit fields to a model: the score "auto" becomes `score_for` the model.

        With `macs`, default blocks move to the same shares of a smaller depth.
        """
        changes = {}
        if getattr(self, "score", None) == "auto":
            changes["score"] = self.score_for(model)
        if self.macs is not None and self.counts is None:
            blocks = self._blocks_for(model.depth)
            if blocks:
                changes["blocks"] = blocks
        return dataclasses.replace(self, **changes)

    def score_for(self, model: ModelFacts) -> str:
        """Choose the score, one of SCORES, that "auto" stands for."""
        return "class" if model.class_token else "received"

    def _blocks_for(self, depth):
        """Move default blocks to the same shares of a smaller depth, or return None."""
        # Default blocks are for a depth of 12. Blocks stay if they are not the
        # defaults, or fit the depth. They also stay if two blocks would coincide, or
        # the first would be block 0.
        defaults = getattr(type(self), "blocks", None)
        if not defaults or self.blocks != defaults or max(defaults) < depth:
            return None
        blocks = tuple(block * depth // 12 for block in defaults)
        if len({*blocks}) < len(blocks) or min(blocks) == 0:
            return None
        return blocks


@functools.lru_cache(maxsize=256)
def _steps_of(method, depth):
    """`method.steps(depth)`, cached because `step_at` asks for them at every block."""
    return method.steps(depth)


@dataclasses.dataclass(frozen=True)
class InStages(Method):
    """Base of methods that keep the share `keep_rate` of the tokens at some blocks."""

    amounts = ("keep_rate", "blocks")
    ratio_field = "keep_rate"

    keep_rate: float = 0.7
    blocks: tuple[int, ...] = (3, 6, 9)

    def __post_init__(self):
        super().__post_init__()
        check_range("keep_rate", self.keep_rate, 0, 1)
        check_each("blocks", self.blocks)

    def stages(self, reducer, **where: Any) -> tuple[Step, ...]:
        """Make Steps that leave keep_rate**s of the initial tokens at the s-th block.

        where: further fields of the Steps
        """
        steps = []
        for stage, block in enumerate(sorted(self.blocks), start=1):
            rule = KeepInitial(self.keep_rate**stage)
            steps.append(Step(block, reducer, rule, **where))
        return tuple(steps)


class Removal(Method):
    """Base of methods that remove `r` tokens per block."""

    default_prop_attn = True
    ratio_field = "r"

    def removed(self, depth: int) -> Sequence[int]:
        """Token counts to remove, per block."""
        return (self.r,) * depth

    def scaled(self, ratio, depth, patches):
        # Proportions between blocks stay. With ratio 1 the block with the largest count
        # would lose all tokens.
        removed = self.removed(depth)
        if not any(removed):
            removed = (1,) * depth
        unit = ratio * patches / max(removed)
        lost = itertools.accumulate(number * unit for number in removed)
        counts = [max(1, schedules.rounded(patches - total)) for total in lost]
        return self.within_reach(counts, depth, patches)
