"""A reduction as one record: a method, and how attention weighs sizes beside it.

Users give a number, a text or a dict, which `Reduction.read` reads at the door. Files
have the dict of `Reduction.fields`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Self

from imagepiece_jax.common.fields import (
    CheckedFields,
    as_share,
    is_number,
    literal,
    number_in,
    optional,
    plain,
    switch,
)
from imagepiece_jax.errors import InputError, inside
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method, ModelFacts
from imagepiece_jax.reduction.methods.recommended import recommended


@dataclasses.dataclass(frozen=True)
class Reduction(CheckedFields):
    """What removes tokens from a model; equal ones compute the same.

    method: a plain Method, "auto", stands for the one that is recommended for a model
    prop_attn: whether attention is proportional; None: the default of method and model
    label: the words that asked for it, such as "tome macs=0.5", where counts of tokens
        were found for a cost, or where somebody typed it; "": its fields say it
    """

    method: Method
    prop_attn: bool | None = optional(switch())
    label: str = dataclasses.field(default="", compare=False)

    @classmethod
    def read(cls, value: "ReductionLike", prop_attn: bool | None = None) -> Self:
        """The reduction that a caller or a file gives.

        value: a share of the dense model's MACs, which the recommended method gets,
            also as "50%" or {"macs": 0.5}; a method's name; a dict of a name
            and fields, or the same in a text, "tome:r=8" or "tome r=8"; a
            Method; a Reduction; None: the dense model
        prop_attn: the value that a model's config has; the reduction may have it, too
        Raises InputError for anything else, and for two values of prop_attn.
        """
        if isinstance(value, Method):
            return cls(value, prop_attn)
        found = value
        if not isinstance(value, Reduction):
            with inside("reduction"):
                fields = _fields_of(value)
                found = cls._of_fields(**fields)
        if prop_attn is None or found.prop_attn == prop_attn:
            return found
        if found.prop_attn is not None:
            problem = f"is {prop_attn!r}, in reduction {found.prop_attn!r}"
            raise InputError("prop_attn", prop_attn, "one of them", problem=problem)
        return dataclasses.replace(found, prop_attn=prop_attn)

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> "Reduction":
        """The reduction in the config of a run, with the model's `prop_attn` if set."""
        return cls.read(config["reduction"], config["model"].get("prop_attn"))

    @classmethod
    def _of_fields(cls, /, name=methods.AUTO, prop_attn=None, label=None, **fields):
        """The reduction of a dict with a name, fields, prop_attn and a label."""
        return cls(methods.create(name, **fields), prop_attn, label or "")

    def __str__(self):
        changed = {}
        for field in dataclasses.fields(self.method):
            value = getattr(self.method, field.name)
            if value != field.default:
                changed[field.name] = value
        if self.prop_attn is not None:
            changed["prop_attn"] = self.prop_attn
        words = [self.name]
        for field, value in changed.items():
            text = value if isinstance(value, str) else repr(value).replace(" ", "")
            words.append(f"{field}={text}")
        return ":".join(words)

    @property
    def name(self) -> str:
        """The name of the method."""
        return methods.name_of(self.method)

    @property
    def is_open(self) -> bool:
        """Whether it leaves the method to be recommended for a model."""
        return self.name == methods.AUTO

    @property
    def fields(self) -> dict[str, Any]:
        """Its name and what differs from the method's defaults, as files have it.

        `read` makes an equal one of it.
        """
        found = {"name": self.name}
        defaults = type(self.method)
        for field, value in self.method.named_fields(training=False).items():
            if value != getattr(defaults, field):
                found[field] = value
        if self.prop_attn is not None:
            found["prop_attn"] = self.prop_attn
        if self.label:
            found["label"] = self.label
        return found

    @property
    def all_fields(self) -> dict[str, Any]:
        """All fields that decide what it computes, as tables of results have them."""
        prop_attn = self.prop_attn
        if prop_attn is None:
            prop_attn = self.method.default_prop_attn
        own = self.method.named_fields(training=False)
        return {"name": self.name, "prop_attn": prop_attn, **own}

    @property
    def words(self) -> str:
        """What asked for it, or its fields that are no defaults: "evit keep_rate=.5".

        The dense model is "dense".
        """
        words = self.label
        if not words:
            fields = self.fields
            fields.pop("prop_attn", None)
            words = in_words(**fields)
        # Which is never among what asked for it.
        if self.prop_attn not in (None, self.method.default_prop_attn):
            words += f" prop_attn={self.prop_attn}"
        return words

    @property
    def text(self) -> str:
        """The same as one types it: "evit:keep_rate=0.5"."""
        return self.words.replace(", ", ",").replace(" ", ":")

    def with_cost(self, macs: float) -> "Reduction":
        """The reduction with a cost in place of what said how many tokens stay.

        A schedule stays, and so do fields that give it a shape.
        """
        method = self.method
        changes = {"macs": macs}
        if not isinstance(method.counts, str):
            changes["counts"] = None
        for field in method.found_for_macs:
            changes[field] = getattr(type(method), field)
        with inside("reduction"):
            method = dataclasses.replace(method, **changes)
        return Reduction(method, self.prop_attn)

    def with_recommended(self, model: ModelFacts) -> "Reduction":
        """The reduction with the recommended method in place of "auto"."""
        if not self.is_open:
            return self
        return Reduction(recommended(self.method, model), self.prop_attn)


ReductionLike = Reduction | Method | Mapping[str, Any] | str | float | None
DENSE = Reduction(methods.create())


def in_words(name: str, **fields: Any) -> str:
    """A method and fields of it in words: "evit keep_rate=0.5"; "dense" for none."""
    words = [name]
    if name == DENSE.name and not fields:
        words = ["dense"]
    words += [f"{field}={value}" for field, value in fields.items()]
    return " ".join(words)


def _fields_of(value):
    """What `Reduction.read` takes as a dict of a name and fields, or of a share."""
    if value is None:
        return DENSE.fields
    value = plain(value)
    is_text = isinstance(value, str)
    share = number_in(value) if is_text else value
    if is_number(share):
        # A text's number as it is typed: 50, not 50.0.
        return {"macs": as_share(literal(value) if is_text else share)}
    if is_text:
        name, *fields = split_text(value).items()
        return dict([name, *((field, literal(typed)) for field, typed in fields)])
    mapping = isinstance(value, Mapping)
    if not mapping or not all(isinstance(field, str) for field in value):
        allowed = (
            "a share of the MACs such as 0.5, a method's name, and a dict with a "
            'name and fields: {"name": "evit", "keep_rate": 0.7}'
        )
        raise InputError(value=value, allowed=allowed)
    if "name" not in value and "macs" not in value:
        problem = f"is {dict(value)!r}, which has no name"
        hint = f"the names are {', '.join(methods.names())}"
        raise InputError(value=value, problem=problem, hint=hint)
    return value


def split_text(text: str) -> dict[str, str]:
    """{field: text of its value} of "tome:r=8" or "tome r=8", the name first.

    "tome=0.5" is "tome:macs=0.5", "0.5" is "auto=0.5" and "0.5,0.4" of a --sweep
    "auto=0.5,0.4", and "tome:r=8,metric=key" is "tome:r=8:metric=key".
    Raises InputError for a part without a value, and for a field that is there twice.
    """
    # What asked for a reduction has blanks between its fields, and inside of tuples. A
    # comma before FIELD= stands between fields, too.
    name, *parts = re.split(r"\s*:\s*|[\s,]+(?=\w+=)", text.strip())
    name, equals, share = name.partition("=")
    first, _, _ = name.partition(",")
    # A 0 is no share: of "0,5" the name is refused, as one with a decimal comma.
    is_share = number_in(name) is not None or number_in(first)
    if is_share and not equals:
        name, equals, share = methods.AUTO, "=", name
    found = {"name": name}
    if equals:
        parts.insert(0, f"macs={share}")
    for part in parts:
        field, _, value = part.partition("=")
        if not value:
            allowed = "FIELD=VALUE,VALUE, such as evit:keep_rate=.9,.7"
            raise InputError(value=part, allowed=allowed, problem=f"has {part!r}")
        if field in found:
            allowed = f"one list, such as {field}=V1,V2"
            raise InputError(value=field, allowed=allowed, problem=f"has {field} twice")
        found[field] = value
    return found
