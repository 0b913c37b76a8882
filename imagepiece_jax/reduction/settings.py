"""Reductions as dicts of a name and fields: defaults, comparison, labels.

Unknown names and fields are found by `methods.create`. A reduction whose tokens were
found for a cost also has a `label`: the text that asked for it, "tome macs=0.5".
"""

import re
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.fields import is_number, literal, number_in, plain
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.methods.method import Method

Reduction = Mapping[str, Any] | str | float | None  # what `as_fields` takes
DENSE = {"name": "none"}
LABEL = "label"  # of a reduction that was asked for by its cost


def with_defaults(reduction):
    """A reduction with all fields that decide what it computes.

    reduction: a dict of a name and fields; None: the dense model
    """
    fields, prop_attn = split_reduction(reduction)
    method = methods.create(**fields)
    if prop_attn is None:
        prop_attn = method.model_fields.get("prop_attn", False)
    deciding = method.named_fields(training=False)
    return {"name": fields["name"], "prop_attn": prop_attn, **deciding}


def differences(reduction, base=None):
    """The fields of `reduction` that differ from `base`, or the method's defaults."""
    base = with_defaults(base or {"name": as_fields(reduction)["name"]})
    found = {}
    for field, value in with_defaults(reduction).items():
        if field == "name" or value != base.get(field):
            found[field] = value
    return found


def completed(reduction):
    """`with_defaults`, and the label of a reduction that has one."""
    fields = with_defaults(reduction)
    if reduction and reduction.get(LABEL) is not None:
        fields[LABEL] = reduction[LABEL]
    return fields


def as_tuple(value):
    """A list (JSON's form of a tuple) or an array as a tuple, also inside of dicts."""
    if isinstance(value, dict):
        return {name: as_tuple(each) for name, each in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def in_words(reduction):
    """A reduction in a few words: its label, or the fields that are not defaults."""
    fields = differences(reduction)
    text = reduction.get(LABEL)
    if text is None:
        return label(fields)
    if "prop_attn" in fields:
        text += f" prop_attn={fields['prop_attn']}"
    return text


def with_cost(reduction, macs):
    """A reduction with the cost `macs` in place of what said how many tokens stay.

    Fields that have no effect beside a cost, a list of counts and the label are left
    out.
    """
    asked = as_fields(reduction)
    method = methods.METHODS.get(asked["name"], Method)  # "auto" has no fields
    fields = {}
    for field, value in asked.items():
        is_list = field == "counts" and not isinstance(value, str)
        if field not in (LABEL, *method.found_for_macs) and not is_list:
            fields[field] = value
    return {**fields, "macs": macs}


def cost_label(reduction):
    """The label of a reduction with `macs`: the text that asks for its cost.

    `as_fields` reads it.
    """
    fields = differences(reduction)
    fields.pop("prop_attn", None)
    return label(fields).replace(", ", ",")


def label(reduction):
    """A reduction in a few words: "evit keep_rate=0.7"."""
    words = [reduction["name"]]
    if words == [DENSE["name"]]:
        words = ["dense"]
    for field, value in reduction.items():
        if field not in ("name", LABEL):
            words.append(f"{field}={value}")
    return " ".join(words)


def read_reduction(reduction, prop_attn=None):
    """(Method, prop_attn) of a reduction, for the prop_attn of a model's config."""
    if isinstance(reduction, Method):
        return reduction, prop_attn
    fields, prop_attn = split_reduction(reduction, prop_attn)
    try:
        return methods.create(**fields), prop_attn
    except InputError as error:
        raise error.inside("reduction") from error


def fields_of_method(method):
    """The name of a Method, and its fields that are not the default."""
    usual = type(method)
    fields = {k: v for k, v in vars(method).items() if v != getattr(usual, k)}
    return {"name": methods.name_of(method), **fields}


def as_fields(reduction):
    """A reduction as a dict of a name and fields.

    reduction: such a dict; a share of the dense model's MACs, which the recommended
        method gets, also as "50%" or {"macs": 0.5}; a method's name, in any spelling; a
        name and fields in a text, as --sweep has them, "tome:r=8", or as a label; None:
        the dense model
    Raises InputError for anything else.
    """
    if reduction is None:
        return DENSE
    if isinstance(reduction, str):
        share = number_in(reduction)
        if share is not None:
            return as_fields(share)
        try:
            texts = split_text(reduction)
        except InputError as error:
            raise error.inside("reduction") from error
        name = texts.pop("name")
        return {"name": name} | {field: literal(text) for field, text in texts.items()}
    if is_number(plain(reduction)):
        return {"name": methods.AUTO, "macs": plain(reduction)}
    mapping = isinstance(reduction, Mapping)
    if not mapping or not all(isinstance(field, str) for field in reduction):
        raise InputError(
            field="reduction",
            value=reduction,
            allowed=(
                "a share of the MACs such as 0.5, a method's name, and a dict with a "
                'name and fields: {"name": "evit", "keep_rate": 0.7}'
            ),
        )
    if "name" not in reduction and "macs" in reduction:
        reduction = {"name": methods.AUTO, **reduction}
    if "name" not in reduction:
        raise InputError(
            f"is {dict(reduction)!r}, which has no name",
            field="reduction",
            value=reduction,
            hint=f"the names are {', '.join(methods.names())}",
        )
    if isinstance(reduction["name"], str):
        return {**reduction, "name": methods.spelled(reduction["name"])}
    return reduction


def split_text(text):
    """{field: text of its value} of "tome:r=8" or "tome r=8", the name first.

    "tome=0.5" is "tome:macs=0.5".
    Raises InputError for a part without a value, and for a field that is there twice.
    """
    # A label has blanks between its fields, and inside of tuples.
    name, *parts = re.split(r"\s*:\s*|\s+(?=\w+=)", text.strip())
    name, equals, share = name.partition("=")
    found = {"name": methods.spelled(name)}
    if equals:
        parts.insert(0, f"macs={share}")
    for part in parts:
        field, _, value = part.partition("=")
        if not value:
            raise InputError(
                f"has {part!r}",
                value=part,
                allowed="FIELD=VALUE,VALUE, such as evit:keep_rate=.9,.7",
            )
        if field in found:
            raise InputError(
                f"has {field} twice",
                value=field,
                allowed=f"one list, such as {field}=V1,V2",
            )
        found[field] = value
    return found


def split_reduction(reduction, prop_attn=None):
    """(fields of the method, prop_attn) of a reduction, without its label.

    reduction: as `as_fields` takes it
    prop_attn: the value that a model's config has; the reduction may have it, too
    Raises InputError where it is no reduction, and for two values of prop_attn.
    """
    fields = dict(as_fields(reduction))
    text = fields.pop(LABEL, None)
    if not isinstance(text, str | None):
        raise InputError(
            field="reduction.label",
            value=text,
            allowed='the text that asked for it, such as "tome macs=0.5"',
        )
    inside = fields.pop("prop_attn", prop_attn)
    if prop_attn is None:
        prop_attn = inside
    if inside != prop_attn:
        raise InputError(
            f"is {prop_attn!r}, in reduction {inside!r}",
            field="prop_attn",
            value=prop_attn,
            allowed="one of them",
        )
    return fields, prop_attn
