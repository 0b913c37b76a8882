"""Checks of a method's fields, and dataclass fields that carry them.

A check takes (field name, value) and returns the value in its plain Python type, or
raises an InputError that names the field, what was found and what is allowed.
"""

import dataclasses
import functools
import math
import numbers

from imagepiece_jax.errors import InputError


def is_number(value):
    """Whether it is a real number, NumPy's included, and not a truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value):
    """Whether it is a whole number, NumPy's included, and not a truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _refuse(name, value, allowed):
    raise InputError(f"config.reduction.{name} is {value!r}; allowed are {allowed}")


def check_rate(name, value):
    """`value` as a float in [0, 1]."""
    if not is_number(value) or not 0 <= value <= 1:
        _refuse(name, value, "numbers from 0 to 1")
    return float(value)


def check_count(name, value, least=0):
    """`value` as an int of `least` or more."""
    if not is_whole(value) or value < least:
        _refuse(name, value, f"whole numbers from {least}")
    return int(value)


def check_weight(name, value):
    """`value` as a finite float of 0 or more."""
    if not is_number(value) or not 0 <= value < math.inf:
        _refuse(name, value, "numbers from 0")
    return float(value)


def check_temperature(name, value):
    """`value` as a finite float above 0: it divides."""
    if not is_number(value) or not 0 < value < math.inf:
        _refuse(name, value, "numbers above 0")
    return float(value)


def check_most(name, value, least, most, reason):
    """InputError for a count, or one of a tuple, above the `most` of a model."""
    verb, counts = ("has", value) if isinstance(value, tuple) else ("is", (value,))
    highest = max(counts, default=0)
    if highest > most:
        raise InputError(
            f"config.reduction.{name} {verb} {highest}; allowed are {least} to {most}, "
            f"{reason}"
        )


def check_blocks(name, value):
    """`value` as a tuple of ints."""
    if not isinstance(value, tuple | list) or not all(map(is_whole, value)):
        _refuse(name, value, "whole numbers, such as (3, 6, 9)")
    return tuple(int(block) for block in value)


def check_counts(name, value, least=0):
    """`value` as a tuple of ints of `least` or more."""
    if not isinstance(value, tuple | list) or not all(
        is_whole(entry) and entry >= least for entry in value
    ):
        _refuse(name, value, f"whole numbers from {least}, such as (13, 13, 8)")
    return tuple(int(entry) for entry in value)


def check_choice(name, value, allowed):
    """`value`, which is one of `allowed`."""
    # 1 == True: what is equal must be of the same kind, too.
    if not any(value is a or (value == a and type(value) is type(a)) for a in allowed):
        _refuse(name, value, ", ".join(repr(a) for a in allowed))
    return value


def checked(default, check, training=False):
    """A dataclass field with its check; `training`: inference does not read it."""
    metadata = {"check": check, "training": training}
    return dataclasses.field(default=default, metadata=metadata)


def rate(default, training=False):
    """A field from 0 to 1."""
    return checked(default, check_rate, training)


def weight(default, training=False):
    """A field of 0 or more."""
    return checked(default, check_weight, training)


def count(default, least=0):
    """A field that is a whole number of `least` or more."""
    return checked(default, functools.partial(check_count, least=least))


def blocks(*default):
    """A field that lists block indices."""
    return checked(default, check_blocks)


def optional(check, **options):
    """A field that is None, its default, or what `check` allows with `options`."""

    def check_given(name, value):
        return None if value is None else check(name, value, **options)

    return checked(None, check_given)


def choice(default, allowed):
    """A field that is one of `allowed`."""
    return checked(default, functools.partial(check_choice, allowed=allowed))


def switch(default):
    """A field that is True or False."""
    return checked(default, functools.partial(check_choice, allowed=(True, False)))
