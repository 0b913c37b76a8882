"""The text of --sweep, METHOD:FIELD=V1,V2 or METHOD=MACS: reductions as one types."""

import dataclasses
import itertools
import re

from imagepiece_jax.common.fields import literal, number_in
from imagepiece_jax.errors import InputError, closest
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.settings import (
    DENSE,
    label,
    split_reduction,
    split_text,
    with_defaults,
)

COMMA = r",(?![^(\[]*[)\]])"  # outside of brackets, which hold no others


def parse_sweep(text, macs=None):
    """Reductions of a --sweep, dicts of a name and fields, one for each combination.

    text: "METHOD:FIELD=V1,V2:FIELD=V", whose values are Python literals, or words
        without quotes; "METHOD=V1,V2" for costs, or without the method for those of the
        recommended one; a method without fields is one reduction
    macs: the cost of all but the dense model; None: they say it themselves
    Raises InputError for what cannot be read, and for a field that the method does not
        have or that changes only training.
    """
    if number_in(text.partition(",")[0]) is not None:
        text = f"{methods.AUTO}={text}"
    fields = split_text(text)
    name = fields["name"]
    if macs is not None and name != DENSE["name"]:
        fields = split_text(f"{text}:macs={macs}")
    choices = []
    for values in fields.values():
        choices.append([*map(literal, re.split(COMMA, values))])
    combinations = itertools.product(*choices)
    reductions = [dict(zip(fields, values, strict=True)) for values in combinations]
    if name not in methods.names():
        similar = closest(name, methods.METHODS)
        if similar:
            raise InputError(
                f"has no method {name!r}",
                value=name,
                hint=f"did you mean {similar}?",
            )
    for reduction in reductions:
        own, _ = split_reduction(reduction)
        every = dataclasses.fields(methods.create(**own))
        allowed = [f.name for f in every if not f.metadata.get("training")]
        allowed.append("prop_attn")
        for field in reduction:
            if field not in ("name", *allowed):
                raise InputError(
                    f"has {field}, which only training reads",
                    value=field,
                    allowed=", ".join(allowed),
                )
    return reductions


def parse_sweeps(texts, macs=None):
    """Reductions of every --sweep. Raises InputError for the same one twice.

    macs: as for `parse_sweep`
    """
    reductions = []
    seen = set()
    for text in texts:
        try:
            found = parse_sweep(text, macs)
            parsed = [(each, str(with_defaults(each))) for each in found]
        except InputError as error:
            raise error.inside(place=f"--sweep {text}") from error
        for reduction, full in parsed:
            if full in seen:
                raise InputError(
                    "is given twice",
                    field=label(reduction),
                    place=f"--sweep {text}",
                    hint="name each reduction only once",
                )
            seen.add(full)
            reductions.append(reduction)
    return reductions


def sweep_of(reduction):
    """The --sweep that asks for one reduction, for errors."""
    words = []
    for field, value in reduction.items():
        words.append(value if field == "name" else f"{field}={value}")
    return f"--sweep {':'.join(words)}"
