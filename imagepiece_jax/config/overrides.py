"""Fields of a config that a command line changes: --config.FIELD=VALUE."""

import functools
import re
from typing import TYPE_CHECKING

from imagepiece_jax.common.fields import literal
from imagepiece_jax.errors import InputError, closest

if TYPE_CHECKING:  # else imported where it is used: not every command has a config
    from ml_collections import ConfigDict

REDUCTION = "reduction"


class Overrides(tuple):
    """(field, text) of every --config.FIELD=VALUE."""

    def apply(self, config: "ConfigDict"):
        """Set the fields in a config."""
        for field, text in self:
            override(config, field, text)


def split_overrides(words: list[str]) -> tuple[list[str], Overrides]:
    """(other words, the overrides) of a command line.

    An override is --config.FIELD=VALUE or --config.FIELD VALUE; for a switch
    --config.FIELD (True, not a text) or --noconfig.FIELD (False).
    """
    rest = []
    overrides = []
    words = [*words]
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            rest.append(word)
            continue
        negated, field, text = match.groups()
        if text is None:
            text = not negated
            follows = words and not re.match(r"--?[a-z]", words[0])
            if follows and not negated:
                text = words.pop(0)
        if field in ("model", "data"):  # groups with a field name
            field += ".name"
        overrides.append((field, text))
    return rest, Overrides(overrides)


def with_reduction(overrides: Overrides, text: str | None) -> Overrides:
    """The overrides, and those that --reduction stands for.

    Raises InputError where both say the reduction.
    """
    if text is None:
        return overrides
    for field, _ in overrides:
        if field == REDUCTION:
            problem = f"is given with --config.{field}"
            raise InputError("--reduction", None, "one of the two", problem=problem)
    return Overrides([*overrides, (REDUCTION, text)])


def _tuple(text):
    """Parse "(0, 1)", "0,1" and "0" as numbers, "('a',)" and "a,b" as strings."""
    value = literal(text)
    if value == text:  # which is no literal
        value = tuple(word.strip() for word in text.split(","))
        if not all(word.isidentifier() for word in value):
            raise ValueError(text)
    if not isinstance(value, tuple):
        value = (value,)
    return value


BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Type of a field: (its parser, the allowed values).
PARSERS = {
    bool: (lambda text: BOOLEANS[text.lower()], "true or false"),
    int: (int, "whole numbers"),
    float: (float, "numbers"),
    str: (str, "strings"),
    tuple: (_tuple, "tuples, such as (0, 1) or head,norm"),
}


def override(config: "ConfigDict", field: str, text: str | bool):
    """Set `field`, such as "data.name", to `text` from a command line.

    The value gets the type of the field.

    field: its path in the config; a field of model.arch may be named without "arch"
    text: --config.FIELD is True and --noconfig.FIELD False, for a switch; "" and "None"
        empty a field that may be empty, a placeholder of configs/base.py
    Raises InputError for an unknown field, and for a value of another type.
    """
    from ml_collections import FieldReference

    *groups, leaf = field.split(".")
    if groups == ["model"] and leaf not in config.model and leaf in part_names():
        groups.append("arch")
    try:
        group = functools.reduce(type(config).__getitem__, groups, config)
        kind = group.get_type(leaf)
    except (AttributeError, KeyError, TypeError):
        raise no_such_field(config, field) from None
    path = f"config.{field}"
    if kind not in PARSERS:
        hint = "set it in a config file"
        if kind is type(config) and group[leaf]:
            hint = f"set one of its fields: {', '.join(group[leaf])}"
        raise InputError(path, kind, problem=f"is of type {kind.__name__}", hint=hint)
    references = dict(group.items(preserve_field_references=True))
    if text in ("", "None") and isinstance(references[leaf], FieldReference):
        group[leaf] = None
        return
    parse, of_type = PARSERS[kind]
    if isinstance(text, bool) and kind is not bool:
        raise InputError(path, text, of_type, problem="has no value")
    try:
        group[leaf] = parse(str(text))
    except (ValueError, KeyError):
        value = literal(text) if text else text
        raise InputError(path, value, of_type) from None


def fields_called(config: "ConfigDict", name: str) -> list[str]:
    """Paths of the fields that a typed name may mean.

    These are fields of any method or group that end in it. Else the name is that of a
    group with a field `name`.
    """
    names = _all_fields(config)
    found = _ending_in(name, names)
    if found:
        return found
    return [f"{name}.name"] if f"{name}.name" in names else []


def _all_fields(config):
    """Dotted names of all fields."""
    return sorted(dotted_fields(config))


def _ending_in(name, fields):
    """The dotted names whose last part, or parts, are `name`."""
    return [field for field in fields if f".{field}".endswith(f".{name}")]


def dotted_fields(config, prefix=""):
    """Yield the dotted names of all fields, those of groups included."""
    for name in config:
        if isinstance(config[name], type(config)):
            yield from dotted_fields(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def part_names() -> tuple[str, ...]:
    """The fields of `model.arch`."""
    from imagepiece_jax.models.architecture import PARTS  # imports JAX

    return PARTS


def model_words() -> list[str]:
    """The fields of a ModelSpec, which `load` takes as arguments."""
    from imagepiece_jax.models.spec import ModelSpec  # imports JAX

    return ModelSpec.names()


def method_fields(name: str | None = None) -> list[str]:
    """The fields of the method `name`, [] for an unknown one; None: of all methods."""
    from imagepiece_jax.reduction.methods import METHODS  # imports JAX

    fields = {}  # in the order of the first method that has it
    for method in METHODS:
        if name in (None, method):
            fields |= METHODS[method].__dataclass_fields__
    return [*fields]


def no_such_field(config, field):
    """The InputError for a field that no config has, with a suggestion.

    field: its path; one without groups may be of any
    """
    names = _all_fields(config)
    owner, _, leaf = field.rpartition(".")
    siblings = {}
    for name in names:
        group, _, last = name.rpartition(".")
        if group == owner:
            siblings[last] = name
    # A field of this name in another group is likelier than a similar sibling.
    found = _ending_in(leaf, names)
    similar = closest(leaf, siblings) or _abbreviation(leaf, siblings)
    if not found and similar:
        found = [siblings[similar]]
    if found:
        hint = f"did you mean config.{' or config.'.join(found)}?"
    elif owner and siblings:
        hint = f"config.{owner} has {', '.join(siblings)}"
    else:
        hint = f"config has {', '.join(config)}"
    return InputError(f"config.{field}", problem="is not a field", hint=hint)


def _abbreviation(name, names):
    """The one of `names` that is the initials of `name`, or has it as initials."""
    for other in names:
        for short, long in ((name, other), (other, name)):
            words = long.split("_")
            if len(words) > 1 and short == "".join([word[:1] for word in words]):
                return other
    return None
