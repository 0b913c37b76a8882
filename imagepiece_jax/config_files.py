"""Config files: Python programs that are found, run and checked.

A config file is Python with a function `get_config()` that returns a ConfigDict. Every
mistake in a file is an InputError of one sentence.
"""

import importlib.util
import os
import pathlib
import re
import sys
import traceback

from ml_collections import ConfigDict

from imagepiece_jax.errors import InputError, closest

PACKAGE = pathlib.Path(__file__).resolve().parent
# The repository's configs; an installed package has a copy inside.
inside = PACKAGE / "configs"
CONFIGS = inside if inside.is_dir() else PACKAGE.parent / "configs"
BASE = CONFIGS / "base.py"


def load(path: str | os.PathLike) -> ConfigDict:
    """Return the locked config of "FILE.py", or of "FILE.py:ARG": get_config("ARG").

    A relative configs/NAME.py that does not exist here is the package's own. Files of
    one folder can import each other as `from configs import base` from anywhere.
    """
    name, _, argument = str(path).partition(":")
    file = pathlib.Path(name)
    own = CONFIGS / file.name
    if not file.exists() and file.parent == pathlib.Path("configs") and own.is_file():
        file = own
    if not file.is_file() or file.suffix != ".py":
        raise InputError(_no_such_file(file, argument))
    file = file.resolve()
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.parent))  # before anything else named configs
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(
                f"config file {file} has no function get_config(); see "
                "configs/deit_s.py for what a config file is"
            )
        config = module.get_config(*[argument] if argument else [])
    except InputError:
        raise
    except Exception as error:  # a config file is a program: it can raise anything
        if isinstance(error, ValueError) and argument and repr(argument) in str(error):
            raise InputError(f"--config {path}: {error}") from error
        raise InputError(f"config file {_where(error, file)}") from error
    finally:
        sys.path.remove(str(file.parent.parent))
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"get_config() of config file {file} returns {type(config).__name__}; "
            "allowed is a ConfigDict"
        )
    return config.lock()


def name(path: str | os.PathLike) -> str:
    """Return a config's name: deit_ti_evit for configs/deit_s_evit.py:deit_ti."""
    file, _, argument = str(path).partition(":")
    stem = pathlib.Path(file).stem
    if not argument:
        return stem
    sized, changed = re.subn("^deit_[a-z]+", argument, stem)
    return sized if changed else f"{stem}_{argument}"


def _no_such_file(file, argument):
    found = "does not end in .py" if file.is_file() else "does not exist"
    folder = file.parent
    if file.is_dir():
        found, folder = "is a folder", file
    elif folder == pathlib.Path() or not folder.is_dir():
        folder = pathlib.Path("configs")
        folder = folder if folder.is_dir() else CONFIGS
    known = sorted(path.stem for path in folder.glob("*.py"))
    meant, sized = closest(file.stem, known), re.match("deit_[a-z]+", file.stem)
    default = sized and f"deit_s{file.stem[sized.end() :]}"
    if meant != file.stem and default in known:  # the size is an argument
        meant, argument = default, sized[0]
    if meant is not None:
        meant = f"{folder / meant}.py" + f":{argument}" * bool(argument)
        return f"config file {file} {found}; did you mean {meant}?"
    listed = f"; {folder} has {', '.join(known)}" if known else ""
    return f"config file {file} {found}{listed}"


def _where(error, file):
    """Return "FILE, line N: ..." in one line for what a config file raised."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if pathlib.Path(f.filename).parent == file.parent]
    where = f"{ours[-1].filename}, line {ours[-1].lineno}" if ours else file
    kind = type(error).__name__
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]  # ConfigDict: AttributeError(KeyError(...))
    text = str(error.args[0]) if error.args else "no reason given"
    # ConfigDict lists all fields, over many lines, before its "Did you mean".
    first = text.partition(". Other fields present")[0].partition("\n")[0]
    last = text.rpartition("\n")[2]
    hint = f"; {last}" if last.startswith("Did you mean") else ""
    return f"{where}: {kind}: {first}{hint}"
