"""Fields of a config that a command line changes: --config.FIELD=VALUE."""

import dataclasses
import functools
import re
from typing import TYPE_CHECKING

from imagepiece_jax.common.fields import literal, number_in
from imagepiece_jax.errors import InputError, closest

if TYPE_CHECKING:  # else imported where it is used: not every command has a config
    from ml_collections import ConfigDict

METHOD = "reduction.name"
MACS = "reduction.macs"
# Fields that commands on weights have flags for, by the names of these.
WORDS_OF_LOAD = {
    "batch_size": "batch",
    "data.dir": "data_dir",
    "data.eval_crop": "crop",
    "data.eval_crop_mode": "crop_mode",
    "data.eval_interpolation": "interpolation",
    "data.eval_rule": "rule",
    "data.name": "data",
    "data.resize": "resize",
    "data.threads": "threads",
    "data.workers": "workers",
    "eval_batch_size": "batch",
    "image_size": "image_size",
    "model.attention": "attention",
    "model.dtype": "dtype",
    "model.mean": "mean",
    "model.name": "name",
    "model.std": "std",
    "seed": "seed",
}


class Overrides(tuple):
    """(field, text) of every --config.FIELD=VALUE."""

    def apply(self, config: "ConfigDict"):
        """Set the fields in a config.

        The reduction's name comes first: another method has other fields, all of which
        it checks itself. Next comes its cost, which replaces the config's own amounts;
        the dense model gets the recommended method with it.
        """
        order = {METHOD: 0, MACS: 1}
        named = any(field == METHOD for field, _ in self)
        for field, text in sorted(self, key=lambda pair: order.get(pair[0], 2)):
            names_method = field == METHOD and isinstance(text, str) and text != ""
            if names_method and text != config.reduction.name:
                with config.unlocked():
                    config.reduction = type(config)({"name": text})
            elif field == MACS and text not in ("", "None"):
                _put_cost(config, text, named)
            else:
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
        if field in ("reduction", "model", "data"):  # groups with a field name
            field += ".name"
        if field == METHOD and number_in(str(text)) is not None:
            overrides += [(MACS, text), (METHOD, "auto")]
        elif field == METHOD and re.search("[:=]", str(text)):
            overrides += of_reduction(text)
        else:
            overrides.append((field, text))
    return rest, Overrides(overrides)


def of_reduction(text: str) -> list[tuple[str, str]]:
    """The overrides that a reduction stands for, a share or a text "tome:r=8".

    A share is the cost of the config's own method.
    """
    if number_in(text) is not None:
        return [(MACS, text)]
    name, *typed = fields_of_text(text)
    return [(METHOD, name), *typed]


def with_reduction(overrides: Overrides, text: str | None) -> Overrides:
    """The overrides, and those that --reduction stands for.

    Raises InputError where both say the reduction.
    """
    if text is None:
        return overrides
    for field, _ in overrides:
        if field in (METHOD, MACS):
            problem = f"is given with --config.{field}"
            raise InputError("--reduction", None, "one of the two", problem=problem)
    return Overrides([*overrides, *of_reduction(text)])


def in_words_of_load(overrides: Overrides, names: list[str]) -> str:
    """What overrides are beside --weights: "--name=deit_s --reduction=tome:r=8".

    Only those that a command can say are in it.

    names: of the command's flags
    """
    words = []
    method = ""
    cost = ""
    amounts = []
    for field, value in overrides:
        group, _, leaf = field.rpartition(".")
        if field == METHOD:
            method = "" if value == "auto" else value
        elif field == MACS:
            cost = value
        elif group == "reduction":
            amounts.append(f"{leaf}={value}")
        elif WORDS_OF_LOAD.get(field) in names:
            words.append(f"--{WORDS_OF_LOAD[field]}={value}")
        elif group in ("model", "model.arch") and field not in WORDS_OF_LOAD:
            words.append(f"--model={leaf}={value}")
    if method or amounts:
        parts = [method or "METHOD", *amounts]
        if cost:
            parts.append(f"macs={cost}")
        words.append(f"--reduction={':'.join(parts)}")
    elif cost:
        words.append(f"--reduction={cost}")
    return " ".join(words)


def _put_cost(config, text, named):
    """Put a cost in the place of the amounts in a config.

    named: whether the method is typed, too; else the dense model gets the recommended
    """
    share = literal(text) if isinstance(text, str) else text
    written = config.reduction.to_dict()
    if written["name"] == "none" and not named:
        written["name"] = "auto"
    kept = ("keep_rate", "r", "r_list", "counts", "num_tokens", "grid_size")
    fields = {field: value for field, value in written.items() if field not in kept}
    fields["macs"] = share
    with config.unlocked():
        config.reduction = type(config)(fields)


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
    """Set `field`, such as "reduction.keep_rate", to `text` from a command line.

    The value gets the type of the field; a method's own fields are checked by it.

    field: its path in the config; a field of model.arch may be named without "arch"
    text: --config.FIELD is True and --noconfig.FIELD False, for a switch; "" and "None"
        empty a field that may be empty, a placeholder of configs/base.py
    Raises InputError for an unknown field, and for a value of another type.
    """
    from ml_collections import FieldReference

    *groups, leaf = field.split(".")
    if groups == ["model"] and leaf not in config.model and leaf in part_names():
        groups.append("arch")
    of_method = groups == ["reduction"] and field != METHOD
    # A method and an Architecture check their fields themselves.
    if of_method or groups == ["model", "arch"]:
        group = functools.reduce(type(config).__getitem__, groups, config)
        value = text
        if isinstance(text, str):
            value = literal(text)
        with config.unlocked():
            group[leaf] = value
            if text in ("", "None") and not of_method:
                del group[leaf]
        return
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
        allowed = allowed_values(field) or of_type
        raise InputError(path, text, allowed, problem="has no value")
    try:
        group[leaf] = parse(str(text))
    except (ValueError, KeyError):
        value = literal(text) if text else text
        allowed = allowed_values(field) or of_type
        raise InputError(path, value, allowed) from None


def fields_of_text(text: str) -> list:
    """[name, (field, text), ..] of a reduction "tome:r=8", as `load` takes it.

    Raises InputError for a text that cannot be read.
    """
    name, *parts = text.split(":")
    fields = dict(part.partition("=")[::2] for part in parts)
    return [name, *((f"reduction.{field}", typed) for field, typed in fields.items())]


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


def _all_fields(config, method=None):
    """Dotted names of all fields, with those of a method; None: of all methods."""
    names = {*dotted_fields(config)}
    names |= {f"reduction.{field}" for field in method_fields(method)}
    names |= {f"model.arch.{part}" for part in part_names()}
    return sorted(names)


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


def allowed_values(field: str) -> str | None:
    """The allowed values of a field of a config, by its path; None: nobody says."""
    group, _, name = field.rpartition(".")
    from imagepiece_jax.config.run import RunConfig  # reads all of data

    owners = []
    kinds = [field.type for field in dataclasses.fields(RunConfig)]
    for kind in (RunConfig, *kinds):
        if getattr(kind, "group", None) == group:
            owners.append(kind)
    if group in ("model", "teacher"):
        from imagepiece_jax.models.spec import ModelSpec  # imports JAX

        owners.append(ModelSpec)
    for owner in owners:
        known = owner.__dataclass_fields__
        if name in known and known[name].metadata:
            return known[name].metadata["allowed"]
    return None


def no_such_field(config, field):
    """The InputError for a field that no config has, with a suggestion.

    field: its path; one without groups may be of any
    """
    names = _all_fields(config, config.reduction.name)
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
