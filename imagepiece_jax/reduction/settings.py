"""Reductions as dicts of a name and fields: defaults, comparison, labels, parsing."""

import ast
import itertools

from imagepiece_jax.errors import InputError, closest
from imagepiece_jax.reduction import methods

DENSE = {"name": "none"}
# Fields of the model that a reduction may name beside those of its method.
MODEL_FIELDS = ("prop_attn",)
# Fields of former versions, with the value that had no effect: saved runs have them.
RETIRED = {"round_to": 0}
RENAMED = {"score": {"columns": "received", "cls": "class"}}  # values of fields
ADDED = ("score", "inattentive")  # fields whose default is what methods did before
SWITCHES = ("true", "false")


def completed(reduction):
    """All fields that decide what a reduction computes, with the method's defaults."""
    own, model = split(reduction or DENSE)
    method = methods.create(**own)
    usual = {field: method.model_fields.get(field, False) for field in MODEL_FIELDS}
    name = own.get("name", DENSE["name"])
    return {"name": name, **usual, **model, **method.inference_fields()}


def changed(reduction, usual=None):
    """`reduction` with only those fields that differ from `usual`.

    None: from its method's defaults.
    """
    usual = completed(usual or {"name": reduction["name"]})
    whole = completed(reduction)
    return {k: v for k, v in whole.items() if k == "name" or v != usual.get(k)}


def split(reduction):
    """(fields of the method, name included; fields of the model) of a reduction."""
    reduction = dict(reduction)
    model = {k: reduction.pop(k) for k in MODEL_FIELDS if k in reduction}
    return reduction, model


def current(reduction):
    """`reduction`, as any version saved it, in fields and values of this one."""
    method = methods.METHODS.get(reduction.get("name"), type(None))
    added = {k: getattr(method, k) for k in ADDED if hasattr(method, k)}
    return added | {
        k: RENAMED.get(k, {}).get(v, v) if isinstance(v, str) else v
        for k, v in reduction.items()
        if k not in RETIRED or v != RETIRED[k]
    }


def plain(value):
    """A list (JSON's form of a tuple) or an array as a tuple; all else as it is."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value


def label(reduction):
    """A reduction in a few words: "evit keep_rate=0.7"."""
    fields = [f"{k}={v}" for k, v in reduction.items() if k != "name"]
    name = reduction["name"]
    name = "dense" if name == DENSE["name"] else name
    return " ".join([name, *fields])


def parse(text):
    """Reductions of "METHOD:FIELD=V1,V2:FIELD=V", one for each combination of values.

    Values are Python literals; words without quotes are strings. A method without
    fields is one reduction. InputError for what cannot be read, or for a field that
    the method does not have.
    """
    name, *parts = text.split(":")
    names, choices = [], []
    for part in parts:
        field, equals, values = part.partition("=")
        if not equals or not values:
            raise InputError(
                f"--sweep {text}: found {part!r}; allowed is FIELD=VALUE,VALUE, such "
                "as evit:keep_rate=.9,.7"
            )
        if field in names:
            raise InputError(
                f"--sweep {text}: {field} is there twice; allowed is one list of "
                f"values, such as {field}=V1,V2"
            )
        names.append(field)
        choices.append([_literal(value) for value in _split_at_commas(values)])
    found = [dict(zip(names, mix, strict=True)) for mix in itertools.product(*choices)]
    if name not in methods.METHODS and (meant := closest(name, methods.METHODS)):
        raise InputError(
            f"--sweep {text}: {name!r} is not a method; did you mean {meant}?"
        )
    for fields in found:
        own, _ = split(fields)
        try:
            known = tuple(methods.create(name, **own).inference_fields())
        except InputError as error:
            raise InputError(f"--sweep {text}: {error}") from None
        for field in own:
            if field not in known:
                raise InputError(
                    f"--sweep {text}: {field} changes training alone; allowed are "
                    f"{', '.join(known + MODEL_FIELDS)}"
                )
    return [{"name": name, **fields} for fields in found]


def _split_at_commas(values):
    """Parts between the commas that are outside of brackets."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _literal(text):
    try:
        return ast.literal_eval(text.capitalize() if text in SWITCHES else text)
    except (ValueError, SyntaxError):
        return text
