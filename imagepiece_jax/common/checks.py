"""Checks of values and of config fields, and lists made tuples."""

import dataclasses
import difflib
import functools
import math
import numbers
from collections.abc import Collection, Iterable
from typing import Any

from imagepiece_jax.errors import InputError


def refuse_any(*problems: tuple[object, str]) -> None:
    """Raise InputError with the sentence of the first true pair (truth, sentence)."""
    for is_true, sentence in problems:
        if is_true:
            raise InputError(sentence)


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
    """Check that a value, `name` in the error, is a number within bounds.

    `least` and `most` are inclusive. A bool is no number, and NaN is in no bounds.
    """
    all_bounds = {"at least": least, "above": above, "at most": most, "below": below}
    bounds = {rule: bound for rule, bound in all_bounds.items() if bound is not None}
    number_type: type = numbers.Integral if whole else numbers.Real
    # Each line needs the one before: values of other types cannot be compared.
    fits = isinstance(value, number_type) and not isinstance(value, bool)
    fits = fits and bounds.get("at least", value) <= value
    fits = fits and bounds.get("at most", value) >= value
    fits = fits and bounds.get("above", -math.inf) < value  # False for a NaN
    fits = fits and bounds.get("below", math.inf) > value
    if not fits:
        requirement = "a whole number" if whole else "a number"
        if bounds:
            bound_texts = [f"{rule} {bound}" for rule, bound in bounds.items()]
            requirement += f", {' and '.join(bound_texts)}"
        raise InputError(f"{name} is {value!r}; it must be {requirement}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Check that a value, `name` in the error, is in `choices`."""
    # 1 == True, so equal values must also have the same type.
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return
    choices_text = ", ".join(map(repr, choices))
    raise InputError(f"{name} is {value!r}; it must be one of {choices_text}")


def option(
    default: Any, choices: Collection[Any] = (), compare: bool = True, **bounds: float
) -> Any:
    """A dataclass field with its default, and its choices or bounds (`check_range`).

    The value must be a whole number if the default is one.
    compare: False: equality ignores the field
    """
    check = functools.partial(check_range, whole=isinstance(default, int), **bounds)
    if choices:
        check = functools.partial(check_choice, choices=choices)
    metadata = {"check": check}
    return dataclasses.field(default=default, metadata=metadata, compare=compare)


def check_options(options: Any, owner: str = "") -> None:
    """Check a dataclass's `option` fields; if the default is a tuple, every entry.

    owner: the dataclass's name in errors, such as "config.data"
    """
    name_start = f"{owner}." if owner else ""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        # A default may be no number: None.
        if "check" not in field.metadata or value is field.default:
            continue
        has_entries = isinstance(value, tuple) and isinstance(field.default, tuple)
        for entry in value if has_entries else (value,):
            field.metadata["check"](f"{name_start}{field.name}", entry)


def find_similar_name(name: str, known_names: Iterable[str]) -> str | None:
    """The known name that `name` may be a misspelling of, or None."""
    return next(iter(difflib.get_close_matches(name, known_names, 1, cutoff=0.8)), None)


def replace_lists(value: Any) -> Any:
    """Replace lists (JSON's form of tuples), arrays and NumPy scalars by Python's."""
    if isinstance(value, dict):
        return {name: replace_lists(entry) for name, entry in value.items()}
    # The type np.float32 has a `tolist`, too.
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(replace_lists, value))
    return value
