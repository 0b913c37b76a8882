"""The base of all methods: their fields, their steps, and what training needs."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from imagepiece_jax.common import fields
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import contract, schedules
from imagepiece_jax.reduction.layer_plan import LayerPlan, Step, build
from imagepiece_jax.reduction.reducers import METRICS, SCORES
from imagepiece_jax.reduction.token_counts import KeepInitial


def score(default: str = "auto"):
    """A field for the score by which tokens are ranked.

    Its values are those of `reducers.SCORES`, which docs/tables/scores.md compares, and
    "auto": "class" in models with a class token, "received" in others.
    """
    return fields.choice(default, tuple(SCORES))


def metric():
    """A field for the feature by which tokens are compared."""
    return fields.choice("key", METRICS)


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """How a parameter is trained."""

    # function (rate of the schedule, its peak rate) -> rate; None: the schedule's
    lr: Callable[[Any, float], Any] | None = None
    frozen_epochs: float = 0.0  # first epochs without updates; may be infinite


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
class Method(fields.CheckedFields):
    """A method of token reduction; its fields are those of `config.reduction`.

    Each field has a default and a check (`common.fields`). A method with a training of
    its own overrides some of the class attributes by a value or a function. A plain
    Method is "auto": it has a cost, and stands for the one recommended for a model.
    """

    # names of the fields that say how many tokens stay, and at which blocks
    amounts: ClassVar[tuple[str, ...]] = ("keep_rate",)
    # those of them that have no effect beside `macs`, because they are found for it
    found_for_macs: ClassVar[tuple[str, ...]] = ()
    needs_teacher: ClassVar[bool] = False  # whether training needs a frozen dense model
    # defaults for fields of the model's config
    model_fields: ClassVar[Mapping[str, Any]] = {}
    # function (outputs, teacher_outputs, plan) -> {name: further loss term}
    loss: ClassVar[Callable[..., dict[str, Any]] | None] = None
    # function (path such as "blocks_3/attn/q/kernel") -> ParamGroup
    param_groups: ClassVar[Callable[[str], ParamGroup] | None] = None
    # function (epoch) -> keep rate in that epoch
    rate_at: ClassVar[Callable[[int], float] | None] = None

    _: dataclasses.KW_ONLY
    # Cost as a share of the dense model's MACs. `models.reduction_plan` finds the
    # strength of the schedule, in `counts` or the method's own, whose cost is nearest.
    macs: float | None = fields.optional(fields.share())
    # Number of image tokens after each block, or a schedule, which needs `macs`.
    counts: str | tuple[int, ...] | None = fields.optional(
        fields.checked(None, schedules.parse, schedules.ALLOWED)
    )

    def __post_init__(self):
        super().__post_init__()
        if type(self) is Method and self.macs is None:
            problem = f"is 'auto', which needs macs: {fields.SHARES}"
            raise InputError("name", "auto", problem=problem)
        if self.macs is not None:
            self._check_free(self.found_for_macs, "macs")
        if self.counts is None:
            return
        self._check_free(self.amounts, "counts")
        is_schedule = isinstance(self.counts, str)
        allowed = "a schedule with macs, such as macs=0.5, and a list without"
        if is_schedule and self.macs is None:
            problem = f"is {self.counts!r}, which needs macs"
            self.refuse("counts", allowed, problem)
        if not is_schedule and self.macs is not None:
            problem = f"is {self.counts!r}, which says what it costs"
            self.refuse("counts", allowed, problem)

    def _check_free(self, names, other):
        """Raise InputError for a field of these where `other` says how many stay."""
        for name, default in self._defaults(names).items():
            value = getattr(self, name)
            if value != default:
                problem = f"is {value!r}, but {other} says how many tokens stay"
                self.refuse(name, "one of them", problem)

    def _defaults(self, names):
        """{name: default} of the fields that the method has."""
        kind = type(self)
        return {name: getattr(kind, name) for name in names if hasattr(kind, name)}

    @property
    def default_prop_attn(self) -> bool:
        """Whether attention is proportional, where nothing says it."""
        return self.model_fields.get("prop_attn", False)

    def steps(self, depth: int) -> Sequence[Step]:
        """The Steps in a model of `depth` blocks, by the method's own fields."""
        raise NotImplementedError

    def step_at(self, block: int, depth: int, tokens: int) -> Step:
        """The Step at a block where the field `counts` leaves `tokens` image tokens.

        It is the method's own at that block. Only subclasses whose reducers are made
        for one number of tokens, such as TokenLearner, read `tokens`.

        Raises InputError for a block at which the method removes no tokens.
        """
        own = {"counts": None, "macs": None}
        if hasattr(self, "blocks"):
            own["blocks"] = (block,)
        key = depth, own.get("blocks")
        if key not in self._steps_at:
            method = dataclasses.replace(self, **own)
            self._steps_at[key] = contract.check_steps(method.steps(depth), method)
        for step in self._steps_at[key]:
            if step.block == block:
                return step
        problem = f"changes at block {block}, at which this method does nothing"
        self.refuse("counts", "counts that change elsewhere", problem)

    @functools.cached_property
    def _steps_at(self):
        """The Steps that `step_at` has found: a schedule asks for those of all blocks.

        By depth and, where the method has the field `blocks`, by its value.
        """
        return {}

    def scaled(self, strength: float, depth: int, patches: int) -> "Method":
        """The method with other fields of its own, which keep fewer tokens or more.

        strength: from 0, where all tokens stay, to 1, where as few stay as can
        """
        if hasattr(self, "keep_rate"):
            return dataclasses.replace(self, keep_rate=round(1 - strength, 6))
        return self._powered(strength, depth, patches)

    def at_strength(self, strength: float, depth: int, patches: int) -> "Method":
        """The method with a schedule of another strength, for a search by cost.

        Its schedule is that of the field `counts`, by name or as a list, or else that
        of its own fields (`scaled`).

        strength: from 0, where all tokens stay, to 1, where as few stay as can
        """
        free = dataclasses.replace(self, macs=None, counts=None)
        if self.counts is None:
            return free.scaled(strength, depth, patches)
        if not isinstance(self.counts, str):
            return self._powered(strength, depth, patches)
        counts = schedules.counts_of(self.counts, depth, patches, strength)
        return free.within_reach(counts, depth, patches)

    def _powered(self, strength, depth, patches):
        """The method with its share of tokens after each block raised to a power."""
        plan = self.plan(depth, patches, prefix=0)  # tokens are then those of the image
        shares = [layer.mlp_tokens / patches for layer in plan]
        powered = schedules.powered_shares(shares, strength)
        counts = [max(1, schedules.rounded(share * patches)) for share in powered]
        return self.within_reach(counts, depth, patches)

    def plan(
        self, depth: int, patches: int, prefix: int = 0, masked: bool = False
    ) -> tuple[LayerPlan, ...]:
        """The plan of a model, by `counts` or by the method's own fields.

        patches: number of image tokens before the first block
        prefix, masked: as for `layer_plan.build`
        Raises InputError for counts that the method or the model cannot have.
        """
        steps = self.planned_steps(depth, patches)
        return build(depth, patches, steps, prefix, masked)

    def planned_steps(self, depth: int, patches: int) -> Sequence[Step]:
        """The Steps of a `plan`."""
        if self.counts is None:
            steps = self.steps(depth)
        else:
            steps = self._counted(depth, patches)
        return contract.check_steps(steps, self)

    def _counted(self, depth, patches):
        """The Steps that leave as many tokens as `counts` lists."""
        if len(self.counts) != depth:
            allowed = f"{depth}, one for each block"
            self.refuse("counts", allowed, f"has {len(self.counts)} entries")
        if self.counts[0] > patches:
            allowed = f"at most {patches}, the patches of an image"
            self.refuse("counts", allowed, f"starts with {self.counts[0]} tokens")
        steps = []
        n = patches
        stage = 0
        for block, tokens in enumerate(self.counts):
            if tokens == n:
                continue
            stage += 1
            step = self.step_at(block, depth, tokens)
            fewest = step.rule.fewest(n, stage)
            if tokens < fewest:
                problem = f"has {tokens} tokens after block {block} of {n} before it"
                self.refuse("counts", f"{fewest} or more", problem)
            steps.append(dataclasses.replace(step, tokens=tokens))
            n = tokens
        return steps

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
        defaults = self._defaults(self.amounts)
        return dataclasses.replace(self, macs=None, counts=tuple(reached), **defaults)

    def for_model(self, model: ModelFacts) -> "Method":
        """The method with fields that fit a model.

        The score "auto" becomes "class" or "received". With `macs`, default blocks,
        which are for a depth of 12, move to the same shares of a smaller depth.

        Raises InputError for blocks or tokens that the model does not have.
        """
        changes = {}
        if getattr(self, "score", None) == "auto":
            changes["score"] = "class" if model.class_token else "received"
        if self.macs is not None and self.counts is None:
            blocks = self._blocks_for(model.depth)
            if blocks:
                changes["blocks"] = blocks
        fitted = dataclasses.replace(self, **changes)
        if self.counts is not None:  # beside which blocks have no effect
            return fitted
        last = model.depth - 1
        for field in ("block", "blocks"):
            if self.macs is not None and field in self.found_for_macs:
                continue
            if getattr(fitted, field, None) is not None:
                fitted._check_most(field, last, f"0 to {last}, the blocks of the model")
        return fitted

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

    def check_most(self, field: str, most: int, allowed: str):
        """Raise InputError where a field has a number above `most`.

        Beside `counts` the field has no effect, and beside `macs` only its proportions
        have: then nothing is checked.

        field: name of a field with a number or a tuple of numbers
        allowed: the numbers up to `most`, in words
        """
        if self.counts is None and self.macs is None:
            self._check_most(field, most, allowed)

    def _check_most(self, field, most, allowed):
        """As `check_most`, but whatever `counts` and `macs` are."""
        value = getattr(self, field)
        if isinstance(value, tuple):
            highest = max(value, default=0)
            problem = f"has {highest}"
        else:
            highest = value
            problem = f"is {value}"
        if highest > most:
            self.refuse(field, allowed, problem)

    def named_fields(self, training: bool = True) -> dict[str, Any]:
        """{name: value} of the fields.

        training: whether fields that only training reads are among them
        """
        # Fields that all methods have are left out where they have their default.
        silent = {"macs": None, "counts": None}
        if self.macs is not None:  # beside which they decide nothing
            silent |= self._defaults(self.found_for_macs)
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in silent and value == silent[field.name]:
                continue
            if training or not field.metadata.get("training"):
                found[field.name] = value
        return found


@dataclasses.dataclass(frozen=True)
class InStages(Method):
    """Base of methods that keep a share of the tokens at each of some blocks."""

    amounts = ("keep_rate", "blocks")
    found_for_macs = ("keep_rate",)

    keep_rate: float = fields.rate(0.7)
    blocks: tuple[int, ...] = fields.blocks(3, 6, 9)

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
    """Base of methods whose blocks lose `r` tokens each, or those of `r_list`."""

    model_fields = {"prop_attn": True}
    found_for_macs = ("r",)

    def removed(self, depth: int) -> Sequence[int]:
        """Number of tokens that each block should lose."""
        if self.r_list is None:
            return (self.r,) * depth
        return self.r_list

    def for_model(self, model):
        """The method with fields that fit a model.

        Raises InputError where a block should lose more than half of all tokens. A
        later block has fewer tokens, and then loses at most half of those.
        """
        field = "r"
        if getattr(self, "r_list", None) is not None:
            field = "r_list"
        half = model.patches // 2
        allowed = f"0 to {half}, half of the first block's {model.patches} image tokens"
        self.check_most(field, half, allowed)
        return super().for_model(model)

    def scaled(self, strength, depth, patches):
        """The method with another strength, and the same proportions between blocks.

        With strength 1 the block that loses most would lose all tokens.
        """
        removed = self.removed(depth)
        if not any(removed):
            removed = (1,) * depth
        unit = strength * patches / max(removed)
        lost = itertools.accumulate(number * unit for number in removed)
        counts = [max(1, schedules.rounded(patches - total)) for total in lost]
        return self.within_reach(counts, depth, patches)
