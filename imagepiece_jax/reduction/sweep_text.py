"""The text of --sweep, METHOD:FIELD=V1,V2: reductions from what is typed.

benchmark/sweep.py measures them.
"""

import ast
import contextlib
import itertools

from imagepiece_jax.errors import InputError, closest
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.settings import MODEL_FIELDS, completed, label, split

SWITCHES = ("true", "false")


def parse_sweep(text):
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
                f"--sweep {text}: found {part!r}; allowed: FIELD=VALUE,VALUE, such "
                "as evit:keep_rate=.9,.7"
            )
        if field in names:
            raise InputError(
                f"--sweep {text}: {field} is there twice; allowed: one list of "
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
                    f"--sweep {text}: {field} changes training alone; allowed: "
                    f"{', '.join(allowed + MODEL_FIELDS)}"
                )
    return [{"name": name, **reduction} for reduction in reductions]


def parse_sweeps(texts):
    """Reductions of every --sweep. Raises InputError for the same one twice."""
    reductions, told_apart = [], set()
    for text in texts:
        for reduction in parse_sweep(text):
            if str(completed(reduction)) in told_apart:
                raise InputError(
                    f"--sweep {text}: {label(reduction)} is there already; allowed: "
                    "every reduction once"
                )
            told_apart.add(str(completed(reduction)))
            reductions.append(reduction)
    return reductions


@contextlib.contextmanager
def naming(reduction):
    """While entered, an InputError names the reduction of --sweep that it is about.

    reduction: one of `parse_sweeps`, or None, which adds nothing
    """
    try:
        yield
    except InputError as error:
        if reduction is None:
            raise
        raise InputError(f"--sweep {label(reduction)}: {error}") from error


def _split_at_commas(values):
    """Parts between the commas that are outside brackets."""
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
