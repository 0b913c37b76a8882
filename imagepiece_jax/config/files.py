"""Config files, and fields that a command line changes.

A config file is Python with a function `get_config()` that returns a ConfigDict; every
mistake in a file or a field is an InputError.
"""

import dataclasses
import functools
import inspect
import os
import pathlib
import re
import runpy
import sys
import traceback
from typing import TYPE_CHECKING

from imagepiece_jax.common import extras
from imagepiece_jax.common.fields import literal
from imagepiece_jax.errors import GONE, InputError, closest, inside

if TYPE_CHECKING:  # else imported where it is used: not every command has a config
    from ml_collections import ConfigDict

_, PACKAGE, ROOT, *_ = pathlib.Path(__file__).resolve().parents
CONFIGS = ROOT / "configs"
if (PACKAGE / "configs").is_dir():  # an installed package has a copy inside
    CONFIGS = PACKAGE / "configs"
BASE = CONFIGS / "base.py"
METHOD = "reduction.name"
MACS = "reduction.macs"


def load_config(path: str | os.PathLike) -> "ConfigDict":
    """The locked config of "FILE.py", or of "FILE.py:ARG": get_config("ARG").

    A relative configs/NAME.py that does not exist here is the package's own. Files of
    one folder named configs can import each other as `from configs import base` from
    anywhere; in files of other folders this line imports the package's own file.
    Raises InputError for a file that is missing or fails.
    """
    with extras.needed("a config"):
        from ml_collections import ConfigDict, FrozenConfigDict

    name, _, argument = str(path).partition(":")
    file = pathlib.Path(name)
    if not file.exists() and file.parent == pathlib.Path("configs"):
        packaged = CONFIGS / file.name
        if packaged.is_file():
            file = packaged
    if not file.is_file() or file.suffix != ".py":
        raise _no_such_file(file, argument)
    file = file.resolve()
    sys.path.insert(0, str(file.parent.parent))  # before anything else named configs
    has_ours = str(CONFIGS.parent) in sys.path
    if not has_ours:  # for a file in a folder of the user's
        sys.path.append(str(CONFIGS.parent))
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if not get_config:
            hint = "see configs/deit_s.py for an example"
            raise InputError(problem="has no function get_config()", hint=hint)
        if argument and not inspect.signature(get_config).parameters:
            allowed = "none, because get_config() in this file takes no argument"
            raise InputError("argument", argument, allowed)
        config = get_config(argument) if argument else get_config()
        if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
            problem = f"returns a value of type {type(config).__name__}"
            raise InputError("get_config()", None, "a ConfigDict", problem=problem)
    except InputError as error:
        raise error.inside(place=f"config file {path}") from error
    except Exception as error:  # a config file is a program: it can raise anything
        raise _raised(error, file, path) from error
    finally:
        sys.path.remove(str(file.parent.parent))
        if not has_ours:
            sys.path.remove(str(CONFIGS.parent))
    config.lock()
    if isinstance(config.get("reduction"), ConfigDict):
        config.reduction.unlock()  # each method has fields of its own
    if isinstance(config.get("model"), ConfigDict) and "arch" in config.model:
        config.model.arch.unlock()
    return config


def config_name(path: str | os.PathLike) -> str:
    """A config's name: deit_ti_evit for configs/deit_s_evit.py:deit_ti."""
    file, _, argument = str(path).partition(":")
    stem = pathlib.Path(file).stem
    if not argument:
        return stem
    name, changed = re.subn("^deit_[a-z]+", argument, stem)
    if not changed:
        return f"{stem}_{argument}"
    return name


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


def _put_cost(config, text, named):
    """Put a cost in the place of the amounts in a config.

    named: whether the method is typed, too; else the dense model gets the recommended
    """
    from imagepiece_jax.reduction.methods import AUTO  # imports JAX
    from imagepiece_jax.reduction.reduction import DENSE, Reduction

    share = literal(text) if isinstance(text, str) else text
    written = config.reduction.to_dict()
    with inside("config"):
        if written["name"] == AUTO or (written["name"] == DENSE.name and not named):
            reduction = Reduction.read(written | {"name": AUTO, "macs": share})
        else:
            reduction = Reduction.read(written).with_cost(share)
    left = {"prop_attn", *reduction.method.named_fields()}
    fields = {field: value for field, value in written.items() if field in left}
    fields |= {"name": reduction.name, "macs": reduction.method.macs}
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


# What ml_collections says of a value of another type: its field, itself, both types.
OF_OTHER_TYPE = re.compile(
    r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type "
    r"<class '(.*?)'> and cannot be casted to type <class '(.*?)'>",
    re.DOTALL,
)
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
        raise _no_such_field(config, field) from None
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
    from imagepiece_jax.reduction.methods import known_name  # imports JAX
    from imagepiece_jax.reduction.reduction import split_text

    with inside("config.reduction"):
        fields = split_text(text)
        name = known_name(fields.pop("name"))
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


def _no_such_file(file, argument):
    """The InputError for a config file that does not exist, with a suggestion."""
    folder = file.parent
    problem = "does not exist"
    if file.is_dir():
        folder = file
        problem = "is a folder, not a file"
    elif file.is_file():
        problem = "does not end in .py"
    if folder == pathlib.Path() or not folder.is_dir():
        folder = pathlib.Path("configs")
    if not folder.is_dir():
        folder = CONFIGS
    stems = sorted(path.stem for path in folder.glob("*.py"))
    stem = closest(file.stem, stems)
    size = re.match("deit_(ti|b)(?=_|$)", file.stem)
    if size and stem != file.stem:  # the size is an argument
        stem = file.stem.replace(size[0], "deit_s", 1)
        argument = size[0]
    hint = f"name a file of {folder}: {'.py, '.join(stems)}.py" if stems else ""
    if stem in stems:
        suffix = f":{argument}" if argument else ""
        hint = f"did you mean {folder / stem}.py{suffix}?"
    return InputError.at(f"config file {file}", problem, hint=hint)


def _no_such_field(config, field):
    """The InputError for a field that no config has, with a suggestion."""
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
    if leaf in GONE:
        hint = GONE[leaf]
    elif found:
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


def _raised(error, file, path):
    """The InputError for an exception of a config file."""
    place = f"config file {path}"
    hint = ""
    for line in traceback.extract_tb(error.__traceback__):
        if pathlib.Path(line.filename).parent == file.parent:
            place = f"config file {line.filename}, line {line.lineno}"
    if isinstance(error, TypeError) and ", line " not in place and ":" not in str(path):
        hint = f"add the argument: {path}:ARGUMENT"  # of the call itself
    if isinstance(error, SyntaxError):
        place = f"config file {error.filename}, line {error.lineno}"
    kind = type(error).__name__
    while error.args and isinstance(error.args[0], Exception):  # of ml_collections
        error = error.args[0]
    reason = str(error.args[0]) if error.args else "no reason given"
    if wrong := OF_OTHER_TYPE.match(reason):
        return _other_type(*wrong.groups()).inside(place=place)
    if similar := re.search('Did you mean "(.*?)"', reason):
        hint = f"did you mean {similar[1]}?"
    reason, _, _ = reason.partition("\n")
    reason, _, _ = reason.partition(". Other fields present")  # of all groups
    return InputError.at(place, f"raises {kind}: {reason}", hint=hint)


def _other_type(leaf, text, kind, wanted):
    """The InputError for a value that ml_collections could not put into a field.

    leaf: the field, without its group
    text, kind: the value as text, and the name of its type
    wanted: the name of the field's type
    """
    config = load_config(BASE)
    value = text if kind == "str" else literal(text)
    if wanted.endswith("ConfigDict"):
        group = config[leaf] if leaf in config else {}
        hint = f"did you mean config.{leaf}.name?" if "name" in group else ""
        allowed = f"a ConfigDict of {', '.join(group)}"
        return InputError(f"config.{leaf}", value, allowed, hint=hint)
    of_type = {kind.__name__: words for kind, (_, words) in PARSERS.items()}
    allowed = of_type.get(wanted, f"values of type {wanted}")
    found = _ending_in(leaf, _all_fields(config))
    if len(found) != 1:  # a field of several groups, of which the error names none
        return InputError(leaf, value, allowed)
    return InputError(f"config.{found[0]}", value, allowed_values(found[0]) or allowed)
