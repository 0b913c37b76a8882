"""What one method exports, and all that any other room may ask of it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from imagepiece_jax.reduction.schedule import Step


@dataclasses.dataclass(frozen=True)
class Group:
    """How one parameter is trained where that differs from the rest.

    lr: (rate of the schedule at this step, its peak) -> rate; frozen_epochs: first
    epochs without any update (infinity: never updated).
    """

    lr: Callable[[Any, float], Any] | None = None
    frozen_epochs: float = 0.0


def takes_fields_of(recipe):
    """Decorator of a combination's recipe: its **fields are those of `recipe`."""

    def wrap(combined):
        known = inspect.signature(recipe).parameters
        *own, _ = inspect.signature(combined).parameters.values()
        more = [known[name] for name in known if name not in {p.name for p in own}]
        combined.__signature__ = inspect.Signature(own + more)
        return combined

    return wrap


@dataclasses.dataclass(frozen=True)
class Method:
    """A token reduction. An absent hook means: nothing special.

    Hooks take what is said here and, as keywords, the method's config fields that they
    name; the fields are the keywords of all hooks together.

    recipe: (depth, **fields) -> steps.
    loss: (outputs, teacher_outputs, plan, **fields) -> {name: extra loss term}.
    param_groups: (path such as "blocks_3/attn/q/kernel", **fields) -> Group.
    rate_at: (epoch, **fields) -> keep rate during that epoch, for warm-ups.
    needs_teacher: whether training compares with a frozen dense model.
    model_fields: fields of the model that the method is meant to be used with, for
        those that are left open.
    """

    recipe: Callable[..., tuple[Step, ...]]
    loss: Callable[..., dict[str, Any]] | None = None
    param_groups: Callable[..., Group] | None = None
    rate_at: Callable[..., float] | None = None
    needs_teacher: bool = False
    model_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def fields(self):
        """Names of the config fields that the hooks take, in order."""
        hooks = ("recipe", "loss", "param_groups", "rate_at")
        return tuple(dict.fromkeys(n for hook in hooks for n in self.fields_of(hook)))

    def fields_of(self, hook):
        """Names of the config fields that one hook takes; none if it is absent."""
        function = getattr(self, hook)
        if function is None:
            return ()
        parameters = inspect.signature(function).parameters.values()
        return tuple(p.name for p in parameters if p.default is not p.empty)

    def call(self, hook, *args, **fields):
        """`hook(*args)` with those of `fields` that it takes; None if it is absent."""
        function = getattr(self, hook)
        if function is None:
            return None
        takes = inspect.signature(function).parameters
        return function(*args, **{k: v for k, v in fields.items() if k in takes})
