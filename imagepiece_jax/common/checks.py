"""Checks of values and of config fields, and lists made tuples."""

import dataclasses
import difflib
import functools
import math
import numbers
from collections.abc import Collection, Iterable
from typing import Any

from imagepiece_jax.errors import InputError


def check_range(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    whole: bool = False,
) -> None:
    """Check that a value is a finite number within bounds.

    name: the value's name in the error
    least, most: inclusive bounds
    above, below: exclusive bounds
    Raises InputError otherwise, also for a bool.
    """
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    limits = {word: limit for word, limit in limits.items() if limit is not None}
    number_type: type = numbers.Integral if whole else numbers.Real
    fits = isinstance(value, number_type) and not isinstance(value, bool)
    fits = fits and limits.get("at least", value) <= value
    fits = fits and limits.get("at most", value) >= value
    fits = fits and limits.get("above", -math.inf) < value  # False for a NaN
    fits = fits and limits.get("below", math.inf) > value
    if not fits:
        expected = "a whole number" if whole else "a number"
        if limits:
            words = [f"{word} {limit}" for word, limit in limits.items()]
            expected += f", {' and '.join(words)}"
        raise InputError(f"{name} is {value!r}; it must be {expected}")


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Check that a value is in `allowed`. `name` is the value's name in the error."""
    # 1 == True, so equal values must also have the same type.
    if any(value == choice and type(value) is type(choice) for choice in allowed):
        return
    words = ", ".join(map(repr, allowed))
    raise InputError(f"{name} is {value!r}; it must be one of {words}")


def check_share(name: str, value: Any) -> None:
    """Check that a value is a share: above 0 and at most 1."""
    check_range(name, value, above=0, most=1)


def option(default: Any, choices: Collection[Any] = (), **limits: float) -> Any:
    """A dataclass field with its default, and its choices or bounds (`check_range`).

    The value must be a whole number if the default is one.
    """
    check = functools.partial(check_range, whole=isinstance(default, int), **limits)
    if choices:
        check = functools.partial(check_choice, allowed=choices)
    return dataclasses.field(default=default, metadata={"check": check})


def check_options(options: Any, path: str) -> None:
    """Check the `option` fields of a dataclass, every number of a tuple by itself.

    path: the dataclass's name in errors, such as "config.data"
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if "check" not in field.metadata or value is field.default:
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            field.metadata["check"](f"{path}.{field.name}", entry)


def most_similar(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` may be a misspelling of, or None."""
    return next(iter(difflib.get_close_matches(word, known, 1, cutoff=0.8)), None)


def as_tuple(value: Any) -> Any:
    """Convert lists (JSON's form of tuples) and arrays to tuples, at every depth.

    NumPy scalars become Python numbers.
    """
    if isinstance(value, dict):
        return {name: as_tuple(entry) for name, entry in value.items()}
    # The type np.float32 has a `tolist`, too.
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value
