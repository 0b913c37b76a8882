"""Checks of single values that raise one sentence, and tuples of lists."""

import math
import numbers
from collections.abc import Collection
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

    name: what the sentence calls the value
    least, most: bounds that are allowed themselves
    above, below: bounds that are not
    whole: whether it must be an int
    Raises InputError otherwise; a bool is no number.
    """
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    limits = {word: limit for word, limit in limits.items() if limit is not None}
    kind = numbers.Integral if whole else numbers.Real
    fits = isinstance(value, kind) and not isinstance(value, bool)
    fits = fits and limits.get("at least", value) <= value
    fits = fits and limits.get("at most", value) >= value
    fits = fits and limits.get("above", -math.inf) < value  # a NaN is not
    fits = fits and limits.get("below", math.inf) > value
    if not fits:
        expected = "a whole number" if whole else "a number"
        if limits:
            words = [f"{word} {limit}" for word, limit in limits.items()]
            expected += f", {' and '.join(words)}"
        raise InputError(f"{name} is {value!r}; it must be {expected}")


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Check that a value is one of those allowed.

    name: what the sentence calls the value
    """
    # 1 == True: equal values must also be of one type.
    if any(value == each and type(value) is type(each) for each in allowed):
        return
    words = ", ".join(map(repr, allowed))
    raise InputError(f"{name} is {value!r}; it must be one of {words}")


def check_share(name: str, value: Any) -> None:
    """Check that a value is a share, a number above 0 and up to 1.

    name: what the sentence calls the value
    """
    check_range(name, value, above=0, most=1)


def as_tuple(value: Any) -> Any:
    """A list (JSON's form of a tuple) or an array as a tuple, also inside of others.

    Scalars of NumPy become numbers of Python.
    """
    if isinstance(value, dict):
        return {name: as_tuple(each) for name, each in value.items()}
    if hasattr(value, "tolist") and not isinstance(value, type):  # np.float32
        value = value.tolist()
    return tuple(map(as_tuple, value)) if isinstance(value, list | tuple) else value
