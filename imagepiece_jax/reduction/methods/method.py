"""The base of all methods: their fields, their steps, and what training needs."""

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
    """A field that only training reads: methods that differ in it are equal."""
    return dataclasses.field(default=default, compare=False)


def check_each(name: str, values: Any, **bounds: Any) -> None:
    """Check that a value is a tuple of whole numbers within bounds.

    name: what the sentence calls the value
    bounds: as `check_range` takes them
    Raises InputError otherwise.
    """
    if not isinstance(values, tuple):
        raise InputError(f"{name} is {values!r}; it must be a tuple such as (3, 6, 9)")
    for value in values:
        check_range(f"an entry of {name}", value, whole=True, **bounds)


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """How a parameter is trained."""

    # function (rate of the schedule, its peak rate) -> rate; None: the schedule's
    lr: Callable[[Any, float], Any] | None = None
    frozen_epochs: float = 0.0  # first epochs without updates; may be infinite

    @property
    def is_frozen(self) -> bool:
        """Whether the parameter is never updated."""
        return self.frozen_epochs == float("inf")


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """The facts about a model on which defaults of a method may depend."""

    depth: int  # number of blocks
    embed_dim: int
    patches: int  # number of image tokens before the first block
    class_token: bool = True
    pool: str = "token"  # what the head reads: "token", "mean" or "map"
    classes: int = 1000  # 0: the model has no head
    name: str | None = None  # name of a public model


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of token reduction; its fields are those of a reduction's text.

    Each field has a default. Fields that only training reads have compare=False. The
    field `score` is one of `reducers.SCORES`, which docs/tables/scores.md compares, and
    `metric`, by which tokens are compared, one of METRICS. A method with a training of
    its own overrides some of the class attributes by a value or a function. A plain
    Method has a cost, and stands for the method that is recommended for a model.
    """

    # names of the fields that say how many tokens stay, and at which blocks
    amounts: ClassVar[tuple[str, ...]] = ()
    # the one of them that is found for a cost, and has no effect beside `macs`
    ratio_field: ClassVar[str | None] = None
    needs_teacher: ClassVar[bool] = False  # whether training needs a frozen dense model
    # whether attention is proportional, where nothing says it
    default_prop_attn: ClassVar[bool] = False
    # function (outputs, teacher_outputs, plan) -> {name: further loss term}
    loss: ClassVar[Callable[..., dict[str, Any]] | None] = None
    # function (path such as "blocks_3/attn/q/kernel") -> ParamGroup
    param_groups: ClassVar[Callable[[str], ParamGroup] | None] = None
    # function (epoch) -> keep rate in that epoch
    rate_at: ClassVar[Callable[[int], float] | None] = None

    _: dataclasses.KW_ONLY
    # Cost as a share of the dense model's MACs. `models.reduction_plan` finds the
    # ratio of the schedule, in `counts` or the method's own, whose cost is nearest.
    macs: float | None = None
    # Number of image tokens after each block, or a schedule, which needs `macs`.
    counts: str | tuple[int, ...] | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            # Lists have no hash, and NumPy's numbers another text.
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
                f"counts is {self.counts!r}; a schedule must have macs beside it, and "
                "a list of counts must not"
            )

    def _check_default(self, name, other):
        """Check that a field is not given beside `other`, which says the same."""
        value = getattr(self, name)
        if value != getattr(type(self), name):
            raise InputError(
                f"{name} is {value!r}, but {other} says how many tokens stay: one of "
                "the two"
            )

    def steps(self, depth: int) -> Sequence[Step]:
        """The Steps in a model of `depth` blocks, by the method's own fields."""
        raise NotImplementedError

    def step_at(self, block: int, depth: int, tokens: int) -> Step:
        """The Step at a block where the field `counts` leaves `tokens` image tokens.

        It is the method's own at that block. Only subclasses whose reducers are made
        for one number of tokens, such as TokenLearner, read `tokens`.

        Raises Unreachable for a block at which the method removes no tokens.
        """
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
        """The method with another ratio of its schedule, for a search by cost.

        Its schedule is the one that `counts` names, else its own fields (`scaled`).

        ratio: from 0, where all tokens stay, to 1, where as few stay as can
        """
        free = dataclasses.replace(self, macs=None, counts=None)
        if self.counts is None:
            return free.scaled(ratio, depth, patches)
        counts = schedules.counts_of(self.counts, depth, patches, ratio)
        return free.within_reach(counts, depth, patches)

    def scaled(self, ratio: float, depth: int, patches: int) -> "Method":
        """The method with other fields of its own, which keep fewer tokens or more.

        ratio: as for `at_ratio`
        """
        if hasattr(self, "keep_rate"):
            return dataclasses.replace(self, keep_rate=round(1 - ratio, 6))
        plan = self.plan(depth, patches)  # without prefix: tokens are the image's
        shares = [block.mlp_tokens / patches for block in plan]
        counts = []
        for share in schedules.powered_shares(shares, ratio):
            counts.append(max(1, schedules.rounded(share * patches)))
        return self.within_reach(counts, depth, patches)

    def within_reach(self, counts: Sequence[int], depth: int, patches: int) -> "Method":
        """The method with `counts`, or more tokens where its steps must leave more."""
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
        """The plan of a model, by `counts` or by the method's own fields.

        patches: number of image tokens before the first block
        prefix, masked: as for `block_plan.build`
        Raises InputError for counts that the method or the model cannot have.
        """
        if self.counts is None:
            return build(depth, patches, self.steps(depth), prefix, masked)
        if len(self.counts) != depth or self.counts[0] > patches:
            raise InputError(
                f"counts is {self.counts}; it must have {depth} entries, one for each "
                f"block, of at most {patches} tokens, the patches of an image"
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
        """The method with fields that fit a model.

        The score "auto" becomes "class" or "received". With `macs`, default blocks,
        which are for a depth of 12, move to the same shares of a smaller depth.
        """
        changes = {}
        if getattr(self, "score", None) == "auto":
            changes["score"] = "class" if model.class_token else "received"
        if self.macs is not None and self.counts is None:
            blocks = self._blocks_for(model.depth)
            if blocks:
                changes["blocks"] = blocks
        return dataclasses.replace(self, **changes)

    def _blocks_for(self, depth):
        """The default blocks at the same shares of a smaller depth; None: no change.

        Blocks do not change where they are not the defaults, where they fit the depth,
        and where two of them would be the same.
        """
        defaults = getattr(type(self), "blocks", None)
        if not defaults or self.blocks != defaults or max(defaults) < depth:
            return None
        blocks = tuple(block * depth // 12 for block in defaults)
        if len({*blocks}) < len(blocks) or min(blocks) == 0:
            return None
        return blocks


@functools.lru_cache(maxsize=256)
def _steps_of(method, depth):
    """The method's own Steps, kept because `step_at` asks for them at every block."""
    return method.steps(depth)


@dataclasses.dataclass(frozen=True)
class InStages(Method):
    """Base of methods that keep a share of the tokens at each of some blocks."""

    amounts = ("keep_rate", "blocks")
    ratio_field = "keep_rate"

    keep_rate: float = 0.7
    blocks: tuple[int, ...] = (3, 6, 9)

    def __post_init__(self):
        super().__post_init__()
        check_range("keep_rate", self.keep_rate, 0, 1)
        check_each("blocks", self.blocks)

    def stages(self, reducer, **where: Any) -> tuple[Step, ...]:
        """Steps that leave the share keep_rate**s of the tokens at the s-th block.

        where: further fields of the Steps
        """
        steps = []
        for stage, block in enumerate(sorted(self.blocks), start=1):
            rule = KeepInitial(self.keep_rate**stage)
            steps.append(Step(block, reducer, rule, **where))
        return tuple(steps)


class Removal(Method):
    """Base of methods whose blocks lose `r` tokens each."""

    default_prop_attn = True
    ratio_field = "r"

    def removed(self, depth: int) -> Sequence[int]:
        """Number of tokens that each block should lose."""
        return (self.r,) * depth

    def scaled(self, ratio, depth, patches):
        """The method with another ratio, and the same proportions between blocks.

        With ratio 1 the block that loses most would lose all tokens.
        """
        removed = self.removed(depth)
        if not any(removed):
            removed = (1,) * depth
        unit = ratio * patches / max(removed)
        lost = itertools.accumulate(number * unit for number in removed)
        counts = [max(1, schedules.rounded(patches - total)) for total in lost]
        return self.within_reach(counts, depth, patches)
