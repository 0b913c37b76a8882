"""Config files: Python with a function `get_config()` that returns a ConfigDict.

Every mistake in a file is an InputError.
"""

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
from imagepiece_jax.config.overrides import (
    PARSERS,
    fields_called,
    no_such_field,
)
from imagepiece_jax.errors import InputError, closest

if TYPE_CHECKING:  # else imported where it is used: not every command has a config
    from ml_collections import ConfigDict

_, _, ROOT, *_ = pathlib.Path(__file__).resolve().parents
CONFIGS = ROOT / "configs"
BASE = CONFIGS / "base.py"


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


# What ml_collections says of a value of another type: its field, itself, both types.
OF_OTHER_TYPE = re.compile(
    r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type "
    r"<class '(.*?)'> and cannot be casted to type <class '(.*?)'>",
    re.DOTALL,
)


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
    if unknown := re.match('Key "(.*?)" does not exist', reason):
        error = no_such_field(load_config(BASE), unknown[1])
        # ml_collections does not say of which group.
        return error.with_facts(field=unknown[1], place=place, hint=hint or error.hint)
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
        group = config.get(leaf, {})
        field = f"config.{leaf}" if group else leaf
        hint = f"did you mean config.{leaf}.name?" if "name" in group else ""
        return InputError(field, value, "a ConfigDict, a group of fields", hint=hint)
    of_type = {kind.__name__: words for kind, (_, words) in PARSERS.items()}
    allowed = of_type.get(wanted, f"values of type {wanted}")
    found = fields_called(config, leaf)
    problem = "is a ConfigDict" if kind.endswith("ConfigDict") else ""
    if len(found) != 1:  # ml_collections does not say of which group
        hint = f"it is one of config.{', config.'.join(found)}" if found else ""
        return InputError(leaf, value, allowed, problem=problem, hint=hint)
    return InputError(
        f"config.{found[0]}",
        value,
        allowed,
        problem=problem,
    )
