"""Shared flags of commands, running one, and --config; `command_line` has its words.

Commands can be imported side by side, so each flag here may be defined again.
"""

import functools
import inspect
import io
import sys
import warnings
from logging import Formatter
from typing import TYPE_CHECKING

from absl import app, flags, logging

from imagepiece_jax.common import cache_dirs, fields, process, signals
from imagepiece_jax.common.fields import literal
from imagepiece_jax.common.timing_rules import Rules
from imagepiece_jax.config import command_line
from imagepiece_jax.config.files import config_name, load_config
from imagepiece_jax.errors import InputError, inside

if TYPE_CHECKING:  # else imported where it is used: not every command has a config
    from ml_collections import ConfigDict

    from imagepiece_jax.config.run import RunConfig

IMAGE_SETS = "csv:FILE, imagenet2012 or digits"  # that --data names, beside folders
flags.disclaim_key_flags()  # --help of a command shows the flags that it asks for here

text = functools.partial(flags.DEFINE_string, allow_override=True)
listed = functools.partial(flags.DEFINE_list, allow_override=True)


class _Parser(flags.ArgumentParser):
    """The text of a flag as the value of a field of common.fields."""

    def __init__(self, name, field, kind, read):
        self._name = name
        self._field = field.metadata
        self._kind = kind
        self._read = read
        if kind in ("int", "float"):  # the help of others says it in its own words
            self.syntactic_help = self._field["allowed"]

    def flag_type(self):
        return self._kind

    def parse(self, argument):
        value = argument
        try:
            if isinstance(argument, str) and argument:  # no default, and not empty
                value = self._read(argument)
            return self._field["convert"](value)
        except InputError as error:  # in the field's own words
            raise error.inside(f"--{self._name}") from error
        except ValueError:
            problem = f"is {argument}" if fields.is_number(value) else ""  # as typed
            allowed = self._field["allowed"]
            flag = f"--{self._name}"
            raise InputError(flag, value, allowed, problem=problem) from None


def integer(name, default, help_text, least=None):
    """Define a flag of whole numbers, of `least` or more; its default may be None."""
    parser = _Parser(name, fields.count(least=least), "int", literal)
    return flags.DEFINE(parser, name, default, help_text, allow_override=True)


def real(name, default, help_text, least=None, most=None, above=None):
    """Define a flag of finite numbers; `least` and `most` are allowed, `above` not."""
    field = fields.number(least=least, most=most, above=above)
    parser = _Parser(name, field, "float", float)
    return flags.DEFINE(parser, name, default, help_text, allow_override=True)


def choice(name, default, values, help_text):
    """Define a flag of one of `values`, all of which are strings."""
    field = fields.choice(allowed=tuple(values))
    field = fields.checked(None, field.metadata["convert"], ", ".join(values))
    help_text = f"<{'|'.join(values)}>: {help_text}"
    parser = _Parser(name, field, "string", str)
    return flags.DEFINE(parser, name, default, help_text, allow_override=True)


def switch(name, default, help_text):
    """Define a flag that is on or off: --name, --noname, --name=false."""
    flag = flags.BooleanFlag(name, default, help_text, allow_override=True)
    field = fields.checked(None, flag.parser.parse, "true, false")
    flag.parser = _Parser(name, field, "bool", str)
    return flags.DEFINE_flag(flag)


def repeated(name, default, help_text):
    """Define a flag that may be repeated; absl would say so in its own words."""
    holder = flags.DEFINE_multi_string(name, default, help_text, allow_override=True)
    flags.FLAGS[name].help = help_text
    return holder


def required(holder, values=""):
    """The value of a flag, a holder or a Flag. Raises InputError if it is missing.

    values: what may be given, in words; default: the flag's help, up to a semicolon
    """
    if holder.value in (None, "", [], [""]):
        values = values or flags.FLAGS[holder.name].help.partition(";")[0]
        hint = f"give {values}"
        raise InputError(f"--{holder.name}", problem="is missing", hint=hint)
    return holder.value


def define_config(help_text="a config file, such as configs/quickstart.py"):
    """Define --config; `run_config` or `configs` reads it."""
    help_text += "; --config.FIELD=VALUE changes a field"
    return repeated("config", [], help_text)


def weights():
    """Define --weights."""
    help_text = (
        "a .npz, .safetensors or .pth file, a folder with config.json and weights, the "
        "folder of a run, or hf://OWNER/NAME"
    )
    return text("weights", None, help_text)


def path_of_weights() -> str:
    """The value of --weights. Raises InputError where it is missing."""
    return required(flags.FLAGS["weights"])


def reduction(otherwise="as the weights were trained"):
    """Define --reduction; `otherwise`: the reduction without it, in words."""
    help_text = (
        "a share of the dense model's multiply-adds, such as 0.5, for the recommended "
        "method; or METHOD:FIELD=VALUE, such as tome:r=8; --macs is short for it; "
        f"default: {otherwise}"
    )
    return text("reduction", None, help_text)


def image_size():
    """Define --image_size."""
    help_text = "pixels a side, or HEIGHT,WIDTH; default: the weights' own"
    return text("image_size", None, help_text)


def model():
    """Define --name and --model; return a function that gives the fields of both."""
    named = "timm's name of the model, where the weights do not say it"
    name = text("name", None, named)
    help_text = "FIELD=VALUE: another argument of load, such as num_heads=3; may repeat"
    fields_typed = repeated("model", [], help_text)

    def read():
        typed = {}
        for each in fields_typed.value:
            field, equals, value = each.partition("=")
            if not equals:
                raise InputError("--model", each, "FIELD=VALUE, such as num_heads=3")
            typed[field.removeprefix("arch.")] = literal(value)
        if name.value is not None:
            typed["name"] = name.value
            command_line.check_is_name(name.value)
        return typed

    return read


def normalization():
    """Define --mean and --std; return a function that gives both by name, or {}."""
    help_text = (
        "of the images of --weights, in [0, 1], such as .5,.5,.5; default: the "
        "weights' own, else ImageNet's"
    )
    holders = [text(name, None, help_text) for name in ("mean", "std")]

    def read():
        typed = {h.name: h.value for h in holders if h.value is not None}
        if len(typed) == 1:
            [given] = typed
            lacking = "std" if given == "mean" else "mean"
            problem = f"is given without --{lacking}"
            raise InputError(f"--{given}", None, "both or neither", problem=problem)
        return {name: literal(value) for name, value in typed.items()}

    return read


def data(default=""):
    """Define --data; `default`: the data without it, in words."""
    help_text = f"a folder with a folder of images for each class, {IMAGE_SETS}"
    if default:
        help_text += f"; default: {default}"
    return text("data", None, help_text)


def data_dir():
    """Define --data_dir."""
    return text("data_dir", None, "of imagenet2012's files; default: TFDS's own")


def resize():
    """Define --resize."""
    help_text = "none: images have the right size already; default: the model's own"
    return choice("resize", None, ["deit", "none"], help_text)


def preprocessing():
    """Define --resize, --crop and the other fields of a Preprocessing.

    Returns a function that gives those that are typed, by name.
    """
    holders = [
        resize(),
        real("crop", None, "the crop's sides by the resized image's", most=1, above=0),
        choice("crop_mode", None, ["center", "squash"], "squash: both sides alike"),
        choice("interpolation", None, ["bicubic", "bilinear"], "of resizing"),
        choice("rule", None, ["timm", "transformers"], "whose rounding of the crop"),
    ]
    return lambda: {h.name: h.value for h in holders if h.value is not None}


def limit():
    """Define --limit."""
    help_text = "how many images to take, evenly spaced over the set; default: all"
    return integer("limit", None, help_text, 1)


def sweep(help_text):
    """Define --sweep, whose texts reduction/sweep_text.py reads; it can be repeated.

    A number behind --reduction is the cost of all its reductions.
    """
    return repeated("sweep", [], f"METHOD=MACS or METHOD:FIELD=V1,V2: {help_text}")


def typed_cost() -> float | None:
    """The number that --reduction says; None where it says none.

    Raises InputError for a number that is no share.
    """
    typed = flags.FLAGS["reduction"].value
    if typed is None or fields.number_in(typed) is None:
        return None
    with inside("--reduction"):
        return fields.as_share(literal(typed))


def dtype(of, before=""):
    """Define --dtype; None stands for `before`, or for the device's fast one."""
    default = "bfloat16, and float32 on CPUs"
    if before:
        default = f"{before}, or {default}"
    help_text = f"{of}; default: {default}"
    return choice("dtype", None, ["float32", "bfloat16", "float16"], help_text)


def attention():
    """Define --attention."""
    help_text = "what computes it; default: the fastest that the device has"
    return choice("attention", None, ["xla", "cudnn"], help_text)


def gelu(
    of="the optimized program",
    default="the model's, but tanh for exact on GPUs, not in float32",
):
    """Define --gelu of a program; None stands for `default`, what `optimize` takes."""
    help_text = f"of {of}; default: {default}"
    return choice("gelu", None, ["exact", "tanh"], help_text)


def timing():
    """Define --warmup, --repeats and --seconds; return a function that gives Rules."""
    warmup = integer(
        "warmup", Rules.warmup, "calls of each program that are not timed, first", 2
    )
    repeats = integer("repeats", Rules.repeats, "rounds in which each is timed", 1)
    seconds = real(
        "seconds", Rules.seconds, "that a program is timed in a round, at least", 0
    )
    return lambda: Rules(warmup.value, repeats.value, seconds.value)


# Running a command


def run(main, *, compiles=True):
    """Parse the flags, call `main()` and exit with its status (None: 0).

    A `main` with the parameter `words` gets those that belong to no flag. InputError
    exits with 2, RunError with 1, a signal with 128 and its number (Ctrl-C: 130,
    SIGTERM: 143), each with one line on stderr.

    compiles: whether programs that JAX compiles are cached for the next process
    """
    signals.end_process()
    takes_words = "words" in inspect.signature(main).parameters
    jax_was_there = "jax" in sys.modules
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show, not being UTF-8, must not stop a run.
        sys.stdout.reconfigure(errors="backslashreplace")

    def guarded(argv):
        try:
            if argv[1:] and not takes_words:
                raise command_line.unexpected(argv[1])
            if compiles:
                keep_programs(jax_was_there)
            words = [argv[1:]] if takes_words else []
            return main(*words) or 0
        except BrokenPipeError:  # the reader of our output has gone: `... | head`
            return process.discard_output()
        except (Exception, KeyboardInterrupt) as error:
            line, status = process.ending(command_line.as_typed(error))
            if line is None:
                raise
        print(line, file=sys.stderr)
        return process.leave(status)

    logging.set_verbosity(logging.WARNING)  # libraries report each of their steps
    logging.get_absl_handler().setFormatter(Formatter())  # as printed lines
    warnings.formatwarning = _warning_lines()
    app.run(
        guarded,
        flags_parser=functools.partial(command_line.parse, takes_words=takes_words),
    )


def _warning_lines():
    """A form of Python's warnings: one line, without a place in the code, and once.

    Python forgets what it has shown whenever a library, such as JAX, changes filters.
    """
    shown = set()

    def line(message, *_):
        text = f"warning: {message}\n"
        if text in shown:
            return ""
        shown.add(text)
        return text

    return line


def keep_programs(jax_was_there):
    """Let JAX keep compiled programs for later commands, and say where if it is new.

    jax_was_there: whether JAX was imported before the command, whose settings it is not
    """
    if jax_was_there:
        return
    folder, is_new = cache_dirs.keep_programs()
    if folder is not None and "jax" in sys.modules:  # for the name of a flag
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(folder))
    if is_new:
        way_out = "(set JAX_COMPILATION_CACHE_DIR= to keep none)"
        print(f"compiled programs are kept in {folder} {way_out}", file=sys.stderr)


# Configs of a command line


def run_config() -> tuple[str, "RunConfig"]:
    """(name, RunConfig) of the only --config, with --config.FIELD=VALUE applied to it.

    The RunConfig has the fields in objects by their subject: config.lr is `optim.lr`.

    Raises InputError for a mistake in it.
    """
    from imagepiece_jax.config.run import RunConfig

    path = _only_path()
    config = load_config(path)
    command_line.overrides().apply(config)
    return config_name(path), RunConfig.from_config(config)


def _only_path():
    """What --config names. Raises InputError where it is given more than once."""
    paths = required(flags.FLAGS["config"])
    if len(paths) > 1:
        problem = f"is given {len(paths)} times"
        raise InputError("--config", None, "once", problem=problem)
    return paths[0]


def configs() -> dict[str, "ConfigDict"]:
    """{name: config} of every --config, with overrides.

    Raises InputError for a mistake in a config.
    """
    from imagepiece_jax.config.run import RunConfig

    paths = required(flags.FLAGS["config"])
    by_name = {}
    for path in paths:
        name = config_name(path)
        if name in by_name:
            problem = f"{path} is the second config named {name}"
            allowed = "files with different names"
            raise InputError("--config", None, allowed, problem=problem)
        by_name[name] = load_config(path)
        try:
            command_line.overrides().apply(by_name[name])
            RunConfig.from_config(by_name[name])
        except InputError as error:
            if len(paths) == 1:
                raise
            raise error.inside(place=path) from error
    return by_name
