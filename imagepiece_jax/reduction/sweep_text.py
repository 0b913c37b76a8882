"""The text of --sweep, METHOD:FIELD=V1,V2 or METHOD=MACS: several reductions."""

import dataclasses
import itertools
import re
from collections.abc import Iterable

from imagepiece_jax.common.fields import literal
from imagepiece_jax.errors import InputError, inside
from imagepiece_jax.reduction import methods
from imagepiece_jax.reduction.reduction import DENSE, Reduction, in_words, split_text

COMMA = r",(?![^(\[]*[)\]])"  # outside of brackets, which hold no others


def parse_sweep(text: str, macs: float | None = None) -> list[Reduction]:
    """Reductions of a --sweep, one for each combination of values.

    text: "METHOD:FIELD=V1,V2:FIELD=V", whose values are Python literals, or words
        without quotes; "METHOD=V1,V2" for costs, or without the method for those of the
        recommended one; a method without fields is one reduction
    macs: the cost of all but the dense model; None: they say it themselves
    Raises InputError for what cannot be read, and for a field that the method does not
        have or that changes only training.
    """
    if not text.strip():
        allowed = "a method, such as tome:r=8, or a share of the MACs"
        raise InputError(value=text, allowed=allowed, problem="is empty")
    fields = split_text(text)
    with inside("reduction"):
        name = methods.known_name(fields["name"])
    if macs is not None and name != DENSE.name:
        fields = split_text(f"{text}:macs={macs}")
    fields["name"] = name
    choices = []
    for values in fields.values():
        choices.append([literal(each.strip()) for each in re.split(COMMA, values)])
    reductions = []
    for values in itertools.product(*choices):
        typed = dict(zip(fields, values, strict=True))
        reduction = Reduction.read(typed)
        _check_read(typed, reduction)
        typed.pop("prop_attn", None)  # which `Reduction.words` adds
        label = in_words(**typed).replace(", ", ",")
        reductions.append(dataclasses.replace(reduction, label=label))
    return reductions


def _check_read(typed, reduction):
    """Raise InputError for a typed field that only training reads."""
    every = dataclasses.fields(reduction.method)
    training = [field.name for field in every if field.metadata.get("training")]
    allowed = [field.name for field in every if field.name not in training]
    allowed.append("prop_attn")
    for field in typed:
        if field in training:
            problem = f"has {field}, which only training reads"
            raise InputError(value=field, allowed=", ".join(allowed), problem=problem)


def parse_sweeps(texts: Iterable[str], macs: float | None = None) -> list[Reduction]:
    """Reductions of every --sweep. Raises InputError for the same one twice.

    macs: as for `parse_sweep`
    """
    reductions = {}  # by all that decides what they compute
    for text in texts:
        place = f"sweep {text}".strip()
        with inside(place=place):
            found = parse_sweep(text, macs)
        for reduction in found:
            key = str(reduction.all_fields)
            if key in reductions:
                words = reduction.words
                raise InputError(
                    words, allowed="once", problem="is given twice", place=place
                )
            reductions[key] = reduction
    return [*reductions.values()]
