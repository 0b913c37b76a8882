"""The base of all methods: fields with checks, steps, and what training adds."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from imagepiece_jax.common.fields import CheckedFields
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.layer_plan import Step

RATES = tuple(i / 100 for i in range(5, 101))  # positions of most knobs
# What score="auto" is where no class token says which tokens matter: docs/models.md has
# the accuracies of all scores.
WITHOUT_CLASS_TOKEN = "received"


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """How one parameter is trained where that differs from the rest.

    lr: (rate of the schedule at this step, its peak) -> rate; frozen_epochs: first
    epochs without any update (infinity: never updated).
    """

    lr: Callable[[Any, float], Any] | None = None
    frozen_epochs: float = 0.0


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What a method's defaults may depend on.

    depth: blocks; embed_dim: width of a token; patches: image tokens of the first
    block; class_token: whether there is one; pool: what the head reads, "token", "mean"
    or "map"; name: the public model's, if it is made as one.
    """

    depth: int
    embed_dim: int
    patches: int
    class_token: bool = True
    pool: str = "token"
    name: str | None = None


def check_merges(method, patches):
    """Check that no block is to merge more than it can.

    That is half of the first block's tokens; a later block has fewer, and merges half
    of those.

    method: has the fields `r` and `r_list`
    patches: image tokens of the first block
    Raises InputError, which names the field.
    """
    name = "r" if method.r_list is None else "r_list"
    reason = f"half of the {patches} image tokens of the first block"
    method.check_most(name, patches // 2, reason)


def along(field: str, values: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    """A knob of one field: a setting for each of its values."""
    return tuple({field: value} for value in values)


@dataclasses.dataclass(frozen=True)
class Method(CheckedFields):
    """A token reduction; a subclass's fields are the fields of `config.reduction`.

    Each field has a default and a check (`common.fields`), made when a method is
    created. A method that trains in its own way overrides, with a function or a value:

    needs_teacher: whether training compares with a frozen dense model
    small: fields with which it has steps in a model of three blocks and 25 tokens, for
        tests, where the defaults do not fit
    model_fields: fields of the model that the method is meant to be used with, for
        those that are left open
    loss: (outputs, teacher_outputs, plan) -> {name: extra loss term}
    param_groups: (path such as "blocks_3/attn/q/kernel") -> ParamGroup
    rate_at: (epoch) -> keep rate during that epoch, for warm-ups
    """

    group: ClassVar[str] = "reduction"
    needs_teacher: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = {}
    model_fields: ClassVar[Mapping[str, Any]] = {}
    loss: ClassVar[Callable[..., dict[str, Any]] | None] = None
    param_groups: ClassVar[Callable[[str], ParamGroup] | None] = None
    rate_at: ClassVar[Callable[[int], float] | None] = None

    def steps(self, depth: int) -> Sequence[Step]:
        """The steps in a model of `depth` blocks."""
        raise NotImplementedError

    def knob(self, depth: int) -> Sequence[Mapping[str, Any]]:
        """The settings by which its cost is set: the same fields with other values.

        They lead from the dense model to the published setting and beyond. Some may
        not fit a model of `depth` blocks.
        """
        return along("keep_rate", RATES) if hasattr(self, "keep_rate") else ()

    def with_tokens(self, tokens: int) -> "Method":
        """The method, leaving so many image tokens where a field of its own says it.

        Raises InputError for a count that its field cannot say.
        """
        return self

    def resolved(self, model: ModelFacts) -> "Method":
        """The method for a model: no score is "auto", no default that of another size.

        Raises InputError for counts of tokens that the model does not have.
        """
        if getattr(self, "score", None) != "auto":
            return self
        score = "class" if model.class_token else WITHOUT_CLASS_TOKEN
        return dataclasses.replace(self, score=score)

    def check_most(self, field: str, most: int, reason: str, least: int = 0):
        """Check that a count, or each of several, is allowed for a model.

        field: the field that has them
        most, least: what is allowed
        reason: what `most` is, the end of the error's sentence
        Raises InputError for more than `most`.
        """
        value = getattr(self, field)
        verb, counts = ("has", value) if isinstance(value, tuple) else ("is", (value,))
        highest = max(counts, default=0)
        if highest > most:
            raise InputError(
                f"{self.path(field)} {verb} {highest}; allowed are {least} to {most}, "
                f"{reason}"
            )

    def inference_fields(self) -> dict[str, Any]:
        """The fields by name, without those that only training reads."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.metadata.get("training")
        }


@dataclasses.dataclass(frozen=True)
class NoReduction(Method):
    """No steps: the dense model."""

    def steps(self, depth):
        return ()
