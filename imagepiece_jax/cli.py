"""Command line of every command: shared flags, --config.FIELD, one-sentence errors.

Commands can be imported side by side, so each flag here may be defined again.
"""

import ast
import atexit
import contextlib
import functools
import inspect
import io
import math
import os
import re
import signal
import sys

from absl import app, flags, logging
from ml_collections import ConfigDict

from imagepiece_jax import config_files
from imagepiece_jax.errors import InputError, RunError, Stopped, closest

DTYPES = ("float32", "bfloat16", "float16")

flags.disclaim_key_flags()  # --help of a command shows the flags that it asks for here

_string = functools.partial(flags.DEFINE_string, allow_override=True)
_enum = functools.partial(flags.DEFINE_enum, allow_override=True)


def _multi(name, help_text):
    """Define a flag that may be repeated; absl's words on that are left out."""
    holder = flags.DEFINE_multi_string(name, [], help_text, allow_override=True)
    flags.FLAGS[name].help = help_text
    return holder


class Overrides(tuple):
    """(field, text) of every --config.FIELD=VALUE; calling it changes a config."""

    def __call__(self, config):
        for field, text in self:
            override(config, field, text)


_overrides = Overrides()  # of the command line that `run` has parsed


def define_config(help_text="a config file, such as configs/quickstart.py"):
    """Define --config; `config`, `configs` or `config_or_base` reads it."""
    help_text += "; --config.FIELD=VALUE changes a field of it; may be repeated"
    return _multi("config", help_text)


def configs():
    """Return {name: config} of every --config, with the overrides."""
    found, typed = {}, flags.FLAGS["config"].value
    if not typed:
        raise InputError(f"--config is missing: {flags.FLAGS['config'].help}")
    for path in typed:
        name = config_files.name(path)
        if name in found:
            raise InputError(
                f"--config {path}: a config of this name is there already; allowed are "
                "files of different names"
            )
        found[name] = config_files.load(path)
        try:
            _overrides(found[name])
        except InputError as error:
            raise InputError(f"{path}: {error}" if typed[1:] else error) from None
    return found


def config(required=True):
    """Return the last --config; None where it is missing and not required."""
    missing = not (flags.FLAGS["config"].value or _overrides or required)
    return None if missing else [*configs().values()][-1]


def config_name():
    """Return the name of the last --config, such as deit_s_evit."""
    return [*configs()][-1]


def config_or_base():
    """Return (the last --config, None), or without one (base.py, the overrides)."""
    if flags.FLAGS["config"].value:
        return config(), None
    return config_files.load(config_files.BASE), _overrides


def required(holder):
    """Return the value of a flag that the command cannot do without."""
    if holder.value in (None, ""):
        raise InputError(f"--{holder.name} is missing: {flags.FLAGS[holder.name].help}")
    return holder.value


def finite(holder):
    """Return the value of a float flag; InputError for "nan" and "inf"."""
    if not math.isfinite(holder.value):
        raise InputError(f"--{holder.name} is {holder.value}; allowed are numbers")
    return holder.value


def weights():
    """Define --weights."""
    help_text = "a .npz, .safetensors or .pth file, or the folder of a run"
    return _string("weights", None, help_text)


def normalization():
    """Define --mean and --std; return a function that gives both by name, or {}."""
    help_text = (
        "of the images of --weights, in [0, 1], such as .5,.5,.5; default: the "
        "weights' own, else ImageNet's"
    )
    holders = [_string(name, None, help_text) for name in ("mean", "std")]

    def given():
        texts = {h.name: h.value for h in holders if h.value is not None}
        if len(texts) == 1:
            raise InputError(f"--{next(iter(texts))} is alone; give --mean and --std")
        return {name: _numbers(text) for name, text in texts.items()}

    return given


def checkpoint():
    """Define --checkpoint."""
    kinds = ["best", "latest"]
    return _enum("checkpoint", "best", kinds, "which of a run's checkpoints")


def data(default=""):
    """Define --data; `default`: what a command takes without it, in words."""
    help_text = "csv:FILE, folder:PATH, imagenet2012 or digits"
    return _string("data", None, help_text + (f"; default: {default}" * bool(default)))


def resize():
    """Define --resize."""
    help_text = "none: images have the right size already"
    return _enum("resize", None, ["deit", "none"], help_text)


def sweep(help_text):
    """Define --sweep, which can be given more than once."""
    return _multi("sweep", f"METHOD:FIELD=V1,V2: {help_text}; may be repeated")


def dtype(of):
    """Define --dtype; None stands for the device's fast one."""
    help_text = f"{of}; default: bfloat16, and float32 on CPUs"
    return _enum("dtype", None, DTYPES, help_text)


def timing():
    """Define --warmup, --repeats and --seconds; return a function that gives them."""
    whole = functools.partial(flags.DEFINE_integer, allow_override=True)
    warmup = whole("warmup", 20, "calls before", 2)
    repeats = whole("repeats", 5, "turns of each", 1)
    seconds = flags.DEFINE_float("seconds", 1.0, "of a turn", 0.0, allow_override=True)
    return lambda: (warmup.value, repeats.value, finite(seconds))


def run(main):
    """Parse the flags, call `main()` and exit with its status (None: 0).

    A `main` with a parameter gets the words that belong to no flag, which may stand
    anywhere. InputError exits with 2, RunError with 1, a signal with 128 and its number
    (Ctrl-C: 130, SIGTERM: 143), each with one line on stderr.
    """
    takes_words = bool(inspect.signature(main).parameters)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show, not being UTF-8, must not stop a run.
        sys.stdout.reconfigure(errors="backslashreplace")

    def guarded(argv):
        try:
            if argv[1:] and not takes_words:
                raise InputError(_unexpected(argv[1]))
            return (main(argv[1:]) if takes_words else main()) or 0
        except (InputError, RunError, Stopped) as error:
            return _leave(_complain(error, error.status))
        except MemoryError as error:
            reason = str(error) or "for an array"
            text = f"this machine has too little memory: {reason}"
            return _leave(_complain(text, RunError.status))
        except BrokenPipeError:  # the reader of our output has gone: `... | head`
            return _unread()
        except KeyboardInterrupt:
            return _leave(_complain("interrupted", 128 + signal.SIGINT))

    logging.set_verbosity(logging.WARNING)  # libraries report each of their steps
    app.run(guarded, flags_parser=functools.partial(_parse, anywhere=takes_words))


def _parse(argv, anywhere):
    """Return what is left of `argv` after flags and overrides; exit at a mistake.

    `anywhere`: flags are also read after the first word that is none.
    """
    global _overrides
    flags.FLAGS.set_gnu_getopt(anywhere)
    argv, _overrides = _split(argv)
    try:
        rest = flags.FLAGS(argv)
        if _overrides and "config" not in flags.FLAGS:
            field = _overrides[0][0]
            raise InputError(
                f"--config.{field}: this command has no config; see --help"
            )
        return rest
    except SystemExit:  # --help ends absl's commands with 1
        sys.exit(0)
    except BrokenPipeError:  # of --help
        sys.exit(_unread())
    except flags.UnrecognizedFlagError as error:
        sys.exit(_complain(_unknown(error.flagname), InputError.status))
    except (InputError, flags.Error) as error:
        sys.exit(_complain(error, InputError.status))


def _split(argv):
    """Split `argv` into (the rest, Overrides).

    An override is --config.FIELD=VALUE or --config.FIELD VALUE; for a switch
    --config.FIELD (its text is None) or --noconfig.FIELD.
    """
    rest, overrides, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        found = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if not found:
            rest.append(word)
            continue
        negated, field, text = found.groups()
        if negated and text is None:
            text = "false"
        elif text is None and words and not re.match(r"--?[a-z]", words[0]):
            text = words.pop(0)
        overrides.append((field, text))
    return rest, Overrides(overrides)


def _numbers(text):
    """Return "1,2" as a tuple of floats, any other text as it is."""
    try:
        return tuple(map(float, text.strip("() ").split(",")))
    except ValueError:
        return text


def override(config: ConfigDict, field: str, text: str | None):
    """Set `field`, such as "reduction.keep_rate", to `text` from a command line.

    The value gets the type of the field. `text` None means true, for a bool alone.
    """
    *groups, leaf = field.split(".")
    group = config
    for part in groups:
        group = group.get(part) if isinstance(group, ConfigDict) else None
    if not isinstance(group, ConfigDict) or leaf not in group:
        raise InputError(_no_such_field(config, field))
    kind = group.get_type(leaf)
    if issubclass(kind, ConfigDict):
        found = f"a group of fields; set one of them: {', '.join(group[leaf])}"
        raise InputError(f"config.{field} is {found}")
    if kind not in _KINDS:
        known = ", ".join(known.__name__ for known in _KINDS)
        found = f"of type {kind.__name__}; the command line sets {known}"
        raise InputError(f"config.{field} is {found}")
    parse, allowed = _KINDS[kind]
    if text is None and kind is not bool:
        raise InputError(f"config.{field} has no value; allowed are {allowed}")
    try:
        group[leaf] = parse("true" if text is None else text)
    except (ValueError, KeyError):
        raise InputError(f"config.{field} is {text!r}; allowed are {allowed}") from None


def _boolean(text):
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _number(text):
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _tuple(text):
    """Parse "(0, 1)", "0,1" and "0" as numbers, "('a',)" and "a,b" as strings."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = [word.strip() for word in text.split(",")]
        if not all(word.isidentifier() for word in value):
            raise ValueError(text) from None
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


# Type of a field: (its parser, what is allowed).
_KINDS = {
    bool: (_boolean, "true and false"),
    int: (int, "whole numbers"),
    float: (_number, "finite numbers"),
    str: (str, "texts"),
    tuple: (_tuple, "tuples, such as (0, 1) or head,norm"),
}


def _no_such_field(config, field):
    names = list(_fields(config))
    group, _, leaf = field.rpartition(".")
    siblings = [name for name in names if group and name.startswith(f"{group}.")]
    siblings = [name.removeprefix(f"{group}.") for name in siblings] or list(config)
    leaves = {name.rpartition(".")[2] for name in names}
    # A field of this name in another group is likelier than a similar sibling.
    if leaf not in leaves and (meant := closest(leaf, siblings)):
        meant = [f"{group}.{meant}".removeprefix(".")]
    else:
        near = closest(leaf, leaves)
        meant = [name for name in names if f".{name}".endswith(f".{near}")]
    if meant:
        listed = " or ".join(f"config.{name}" for name in meant)
        return f"config.{field} is not a field; did you mean {listed}?"
    owner = "config" if siblings == list(config) else f"config.{group}"
    return f"config.{field} is not a field; {owner} has {', '.join(siblings)}"


def _fields_named(name):
    """Return the dotted names of the fields of configs/base.py called `name`."""
    names = _fields(config_files.load(config_files.BASE))
    return [field for field in names if f".{field}".endswith(f".{name}")]


def _fields(config, prefix=""):
    """Yield the dotted names of all fields, those of groups included."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from _fields(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def _unknown(name):
    """Return one sentence on a flag that does not exist."""
    known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    if "config" in known and (fields := _fields_named(name)):
        meant = " or ".join(f"--config.{field}" for field in fields)
        return f"--{name} is not a flag; did you mean {meant}?"
    head, dot, tail = name.partition(".")
    meant = closest(head, known)
    if meant is not None:
        return f"--{name} is not a flag; did you mean --{meant}{dot}{tail}?"
    listed = ", ".join(f"--{flag}" for flag in known) or "none"
    return f"--{name} is not a flag; allowed are {listed}"


def _unexpected(word):
    if ".py" in word:
        return f"{word} stands alone; did you mean --config {word}?"
    return f"{word!r} stands alone; allowed are flags, see --help"


def _unread():
    """Discard what is left of our output, which nobody reads, and return a status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return RunError.status


def _leave(status):
    """End with this status, whatever threads of libraries are still doing.

    A step or a compilation that is cut short may crash the interpreter's shutdown, and
    the crash would replace the status. Exit handlers run first, but not after Ctrl-C,
    for which they could take minutes.
    """
    if status != 128 + signal.SIGINT:
        atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _complain(error, status):
    print(f"error: {error}", file=sys.stderr)
    return status
