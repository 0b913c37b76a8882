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
    """A reduction with all fields that decide what it computes.

    reduction: a dict of a name and fields; None or empty: the dense model
    """
    fields, of_model = split(reduction or DENSE)
    method = methods.create(**fields)
    defaults = {field: method.model_fields.get(field, False) for field in MODEL_FIELDS}
    name = fields.get("name", DENSE["name"])
    return {"name": name, **defaults, **of_model, **method.inference_fields()}


def changed(reduction, base=None):
    """`reduction` with only those fields that differ from those of another.

    base: the other reduction; None: the method with its defaults
    """
    base = completed(base or {"name": reduction["name"]})
    fields = completed(reduction)
    return {k: v for k, v in fields.items() if k == "name" or v != base.get(k)}


def split(reduction):
    """Split a reduction: (fields of the method, name included; fields of the model)."""
    reduction = dict(reduction)
    of_model = {k: reduction.pop(k) for k in MODEL_FIELDS if k in reduction}
    return reduction, of_model


def current(reduction):
    """A reduction that any version saved, in fields and values of this version."""
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
    """Reductions of a --sweep, one for each combination of values.

    text: "METHOD:FIELD=V1,V2:FIELD=V", whose values are Python literals, or words
    without quotes; a method without fields is one reduction
    Returns dicts of a name and fields.
    Raises InputError for what cannot be read, and for a field that the method does not
    have or that changes only training.
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
    combinations = itertools.product(*choices)
    reductions = [dict(zip(names, values, strict=True)) for values in combinations]
    if name not in methods.METHODS and (similar := closest(name, methods.METHODS)):
        raise InputError(
            f"--sweep {text}: {name!r} is not a method; did you mean {similar}?"
        )
    for reduction in reductions:
        fields, _ = split(reduction)
        try:
            allowed = tuple(methods.create(name, **fields).inference_fields())
        except InputError as error:
            raise InputError(f"--sweep {text}: {error}") from None
        for field in fields:
            if field not in allowed:
                raise InputError(
                    f"--sweep {text}: {field} changes training alone; allowed are "
                    f"{', '.join(allowed + MODEL_FIELDS)}"
                )
    return [{"name": name, **reduction} for reduction in reductions]


def parse_all(texts):
    """Reductions of the texts of every --sweep; InputError for the same one twice."""
    reductions, told_apart = [], set()
    for text in texts:
        for reduction in parse(text):
            if str(completed(reduction)) in told_apart:
                raise InputError(
                    f"--sweep {text}: {label(reduction)} is there already; allowed is "
                    "every reduction once"
                )
            told_apart.add(str(completed(reduction)))
            reductions.append(reduction)
    return reductions


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
