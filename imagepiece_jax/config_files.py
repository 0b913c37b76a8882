"""How do a config file and what is typed behind it become a config?

A config file is Python with a function `get_config()` that returns a ConfigDict. Every
mistake, in the file or in an override, is an InputError of one sentence.
"""

import ast
import contextlib
import difflib
import importlib.util
import math
import pathlib
import sys
import traceback

from ml_collections import ConfigDict

from imagepiece_jax.errors import InputError


def load(path):
    """The locked ConfigDict of "FILE.py", or of "FILE.py:TEXT": get_config("TEXT").

    Configs of the same folder can be imported as `from configs import base`, wherever
    the command is run from.
    """
    name, _, text = str(path).partition(":")
    file = pathlib.Path(name)
    if not file.is_file() or file.suffix != ".py":
        raise InputError(_no_such_file(file))
    file = file.resolve()
    with _naming_the_line(file), _importable(file.parent.parent):
        spec = importlib.util.spec_from_file_location("config", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(
                f"config file {file} has no function get_config(); see "
                "configs/deit_s.py for what a config file is"
            )
        config = module.get_config(*[text] if text else [])
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() of config file {file} returns {type(config).__name__}; "
            "allowed is a ConfigDict"
        )
    return config.lock()


def override(config, field, text):
    """Set `field`, such as "reduction.keep_rate", to `text` as typed on a command line.

    `text` None is a switch without a value: true, for a bool. The type of a field
    is that of its value in the file.
    """
    *groups, name = field.split(".")
    group = config
    for part in groups:
        group = group.get(part) if isinstance(group, ConfigDict) else None
    if not isinstance(group, ConfigDict) or name not in group:
        raise InputError(_no_such_field(config, field))
    kind = group.get_type(name)
    if issubclass(kind, ConfigDict):
        raise InputError(
            f"config.{field} is a group of fields; set one of them: "
            f"{', '.join(group[name])}"
        )
    if kind not in _KINDS:
        raise InputError(
            f"config.{field} is of type {kind.__name__}; the command line sets "
            f"{', '.join(known.__name__ for known in _KINDS)}"
        )
    parse, allowed = _KINDS[kind]
    if text is None and kind is not bool:
        raise InputError(f"config.{field} has no value; allowed are {allowed}")
    try:
        group[name] = parse("true" if text is None else text)
    except ValueError:
        raise InputError(f"config.{field} is {text!r}; allowed are {allowed}") from None


def closest(word, known):
    """The most similar of the `known` words, or None if there is no similar one."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _boolean(text):
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _number(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _tuple(text):
    """ "(0, 1)", "0,1" and "0" as numbers; "('a',)" and "a,b" as strings."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        words = [word.strip() for word in text.split(",")]
        if not all(word.isidentifier() for word in words):
            raise ValueError(text) from None
        return tuple(words)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


# type of a field -> (text to value or ValueError, what is allowed)
_KINDS = {
    bool: (_boolean, "true and false"),
    int: (int, "whole numbers"),
    float: (_number, "finite numbers"),
    str: (str, "texts"),
    tuple: (_tuple, "tuples, such as (0, 1) or head,norm"),
}


def _no_such_file(file):
    """One sentence, with the config that may have been meant."""
    found = "does not end in .py" if file.is_file() else "does not exist"
    folder = file.parent
    if file.is_dir():
        found, folder = "is a folder", file
    elif folder == pathlib.Path() or not folder.is_dir():
        folder = pathlib.Path("configs")
    known = sorted(path.stem for path in folder.glob("*.py"))
    meant = closest(file.stem, known)
    if meant is not None:
        return f"config file {file} {found}; did you mean {folder / meant}.py?"
    listed = f"; {folder} has {', '.join(known)}" if known else ""
    return f"config file {file} {found}{listed}"


def _no_such_field(config, field):
    """One sentence, with the field that may have been meant, or those of its group."""
    *parts, leaf = field.split(".")
    group, path = config, "config"
    for part in parts:
        if not isinstance(group.get(part), ConfigDict):
            break
        group, path = group[part], f"{path}.{part}"
    known = list(_fields(config))
    leaves = {name.rpartition(".")[2] for name in known}
    # A name that is there elsewhere is meant before one that looks like it here.
    meant = None if leaf in leaves else closest(leaf, group)
    if meant is not None:
        fields = [f"{path}.{meant}"]
    else:
        meant = closest(leaf, leaves)
        fields = [
            f"config.{name}" for name in known if f".{name}".endswith(f".{meant}")
        ]
    if fields:
        return f"config.{field} is not a field; did you mean {' or '.join(fields)}?"
    return f"config.{field} is not a field; {path} has {', '.join(group)}"


def _fields(config, prefix=""):
    """Dotted names of all fields, those of groups in place of the groups."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from _fields(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


@contextlib.contextmanager
def _importable(folder):
    """What is in `folder` can be imported, before anything else of that name."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _naming_the_line(file):
    """Whatever goes wrong in a config file becomes an InputError with its line."""
    try:
        yield
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(
            f"config file {error.filename}, line {error.lineno}: {error.msg}"
        ) from error
    except Exception as error:  # a config file is a program: it can raise anything
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if pathlib.Path(f.filename).parent == file.parent]
        where = f"{ours[-1].filename}, line {ours[-1].lineno}" if ours else file
        raise InputError(f"config file {where}: {_reason(error)}") from error


def _reason(error):
    """What `error` says, in one line."""
    kind = type(error).__name__
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]  # ConfigDict: AttributeError(KeyError(...))
    text = str(error.args[0]) if error.args else "no reason given"
    # ConfigDict shows all fields, over many lines, before it says what may be meant.
    reason = text.partition(". Other fields present")[0].partition("\n")[0]
    hint = text.rpartition("\n")[2]
    return f"{kind}: {reason}{f'; {hint}' if hint.startswith('Did you mean') else ''}"
