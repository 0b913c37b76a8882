"""Fields of methods and config groups: type, check and default in one place.

A frozen dataclass whose base is `CheckedFields` names the kind of each of its fields:
`keep_rate: float = rate(0.7)`. A field without a default must be given.
"""

import ast
import contextlib
import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from imagepiece_jax.errors import InputError

REQUIRED = dataclasses.MISSING
SHARES = "numbers above 0 and up to 1, such as 0.5 for half of the MACs"


@dataclasses.dataclass(frozen=True)
class CheckedFields:
    """Fields that are checked, and made plain Python, when an object is made.

    group: the group of a config that has them; "": its top level; None: no config has
        them
    """

    group: ClassVar[str | None] = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            convert = field.metadata.get("convert")
            if convert is None:
                continue
            try:
                value = convert(plain(getattr(self, field.name)))
            except InputError as error:  # about a part of it
                raise error.inside(self.path(field.name)) from error
            except (ValueError, OverflowError):  # an integer beyond all floats
                self.refuse(field.name, field.metadata["allowed"])
            object.__setattr__(self, field.name, value)

    @classmethod
    def path(cls, field: str) -> str:
        """The path of a field in a config; its name where no config has it."""
        if cls.group is None:
            return field
        return f"config.{cls.group}.{field}" if cls.group else f"config.{field}"

    def refuse(self, field: str, allowed: str = "", problem: str = "", hint: str = ""):
        """Raise InputError for the value of a field."""
        raise InputError(
            self.path(field), getattr(self, field), allowed, problem=problem, hint=hint
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The fields, read from a full config; those of a group from that group.

        Raises InputError for the first that is missing or not allowed, by its path in
        the config.
        """
        values = config
        if cls.group:
            values = config.get(cls.group)
        if not hasattr(values, "keys"):
            values = {}
        read = {}
        for field in dataclasses.fields(cls):
            if isinstance(field.type, type) and issubclass(field.type, CheckedFields):
                read[field.name] = field.type.from_config(config)
            elif field.name in values:
                read[field.name] = values[field.name]
            elif field.default is REQUIRED:
                hint = "a config starts from configs/base.py"
                path = cls.path(field.name)
                raise InputError(path, problem="is missing", hint=hint)
        return cls(**read)


def from_dict(cls, value):
    """An object of a dataclass, or the one that a dict of its fields makes.

    Raises InputError for another object, and for an unknown field.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    if isinstance(value, Mapping) and {*value} <= {*names}:
        value = cls(**value)
    if not isinstance(value, cls):
        raise InputError(value=value, hint=f"its fields are {', '.join(names)}")
    return value


def plain(value: Any) -> Any:
    """A number or list of Python for an array of any library, and for its scalars."""
    is_array = hasattr(value, "tolist") and not isinstance(value, type)  # np.float32
    return value.tolist() if is_array else value


def is_number(value) -> bool:
    """Whether it is a real number, NumPy's included, and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value) -> bool:
    """Whether it is a whole number, NumPy's included, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def literal(text: str) -> Any:
    """A Python literal from a command line, 50%, true or false, or else the text."""
    if re.fullmatch(r"\d*\.?\d+%", text):
        return float(text[:-1]) / 100
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "": None}.get(text.lower(), text)
    return tuple(value) if isinstance(value, list) else value


def checked(default, convert, allowed, training=False):
    """A field with a check of its own.

    convert: from a value to its plain Python form; ValueError for one not allowed
    allowed: the allowed values, in words
    training: whether only training reads the field; methods that differ in such fields
        are equal
    """
    metadata = {"convert": convert, "allowed": allowed, "training": training}
    return dataclasses.field(default=default, metadata=metadata, compare=not training)


def number(
    default=REQUIRED, least=None, most=None, above=None, below=None, training=False
):
    """A finite number; `least` and `most` are allowed, `above` and `below` are not."""

    def convert(value):
        fits = (
            is_number(value)
            and math.isfinite(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        return float(_require(fits, value))

    kind = "numbers"
    if (least, above) == (None, None) or (most, below) == (None, None):
        kind = "finite numbers"
    allowed = kind + _bounds(least, most, above, below)
    return checked(default, convert, allowed, training)


def rate(default=REQUIRED, training=False):
    """A number from 0 to 1."""
    return number(default, least=0, most=1, training=training)


def share():
    """A share of the dense model's cost, above 0 and up to 1, that must be given.

    A text such as "50%" is one, too.
    """
    return checked(None, as_share, SHARES)


def as_share(value: float | str) -> float:
    """A share as a number. Raises InputError for what is none of SHARES."""
    found = number_in(value) if isinstance(value, str) else value
    number = math.nan
    if is_number(found):
        with contextlib.suppress(OverflowError):  # an integer beyond all floats
            number = round(float(found), 6)
    if 0 < number <= 1:
        return number
    problem = "is missing" if value is None else ""
    hint = ""
    if 10 <= number < 100:  # which may be a number of tokens, too
        hint = f"did you mean {number / 100:g}?"
    raise InputError(value=value, allowed=SHARES, problem=problem, hint=hint)


def number_in(text: str) -> float | None:
    """The number that a text says: .5 of "0.5" and of "50%"; None: it says none."""
    text = text.strip()
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text)
    except ValueError:
        return None


def weight(default=REQUIRED, training=False):
    """A number of 0 or more."""
    return number(default, least=0, training=training)


def positive(default=REQUIRED):
    """A number above 0, such as one that divides."""
    return number(default, above=0)


def count(default=REQUIRED, least=0, most=None):
    """A whole number, of `least` or more unless that is None."""

    def convert(value):
        fits = (
            is_integer(value)
            and (least is None or value >= least)
            and (most is None or value <= most)
        )
        return int(_require(fits, value))

    return checked(default, convert, "whole numbers" + _bounds(least, most))


def blocks(*default):
    """Indices of blocks."""
    return several(default, count(least=None), "whole numbers, such as (3, 6, 9)")


def counts(least=0):
    """Whole numbers of `least` or more."""
    allowed = f"whole numbers of at least {least}, such as (13, 13, 8)"
    return several(REQUIRED, count(least=least), allowed)


def several(default, each, allowed, length=None):
    """A tuple of values.

    each: a field that checks one value
    allowed: the allowed values, in words
    length: number of values; None: any
    """

    def convert(value):
        fits = isinstance(value, tuple | list) and length in (None, len(value))
        return tuple(map(each.metadata["convert"], _require(fits, value)))

    return checked(default, convert, allowed)


def choice(default=REQUIRED, allowed=()):
    """One of `allowed`."""

    def convert(value):
        # 1 == True: equal values must also be of one type.
        of_type = [entry for entry in allowed if type(entry) is type(value)]
        return _require(value in of_type, value)

    return checked(default, convert, ", ".join(map(repr, allowed)))


def switch(default=REQUIRED):
    """True or False."""
    return choice(default, (True, False))


def text(default=REQUIRED):
    """A string."""

    def convert(value):
        return _require(isinstance(value, str), value)

    return checked(default, convert, "strings")


def optional(field):
    """A field that is None, its default, or what `field` allows."""
    metadata = field.metadata

    def convert(value):
        if value is None:
            return None
        return metadata["convert"](value)

    return checked(None, convert, metadata["allowed"], metadata["training"])


def _require(fits, value):
    """The value, or ValueError where it does not fit."""
    if not fits:
        raise ValueError(value)
    return value


def _bounds(least=None, most=None, above=None, below=None):
    """Bounds of numbers in words: " from 0 to 1", " of at least 0 and below 1"."""
    if least is not None and most is not None:
        return f" from {least} to {most}"
    bounds = {"of at least": least, "above": above, "up to": most, "below": below}
    words = []
    for word, bound in bounds.items():
        if bound is not None:
            words.append(f"{word} {bound}")
    return f" {' and '.join(words)}".rstrip()
