"""Command line of every command: shared flags, running it, its words, --config.

Commands can be imported side by side, so each flag here may be defined again.
"""

import functools
import inspect
import io
import mimetypes
import os
import re
import sys
import warnings
from logging import Formatter
from typing import TYPE_CHECKING

from absl import app, flags, logging

from imagepiece_jax.common import cache_dirs, extras, fields, process, signals
from imagepiece_jax.common.fields import literal
from imagepiece_jax.common.timing_rules import Rules
from imagepiece_jax.config.files import (
    BASE,
    MACS,
    METHOD,
    Overrides,
    config_name,
    dotted_fields,
    fields_called,
    fields_of_text,
    load_config,
)
from imagepiece_jax.errors import InputError, closest, one_of

if TYPE_CHECKING:  # else imported where it is used: not every command has a config
    from ml_collections import ConfigDict

    from imagepiece_jax.config.run import RunConfig

# Groups and fields of a config that commands on trained weights read.
OF_TRAINED = (
    "model",
    "reduction",
    "image_size",
    "num_classes",
    "seed",
    "data.resize",
    "data.eval_crop",
    "data.eval_crop_mode",
    "data.eval_interpolation",
    "data.eval_rule",
)
# Those that only commands with `evaluated_images` read.
OF_IMAGES = (
    "data.name",
    "data.dir",
    "data.workers",
    "data.threads",
    "eval.sets",
    "eval_batch_size",
)

IMAGE_SETS = "csv:FILE, imagenet2012 or digits"  # that --data names, beside folders
FORMER = {"floors": "smaller_images"}  # what flags were called, for errors
# Endings of files that hold weights alone, and what a folder of weights or a run has.
WEIGHTS_ENDINGS = (".npz", ".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar")
WEIGHTS_FILES = ("config.json", "open_clip_config.json")
# What a flag is called in Python or by other tools: the flag that stands for it.
SYNONYMS = {
    "batch": "batch_size",
    "batch_size": "batch",
    "dataset": "data",
    "h": "help",
    "image": "data",
    "images": "data",
    "macs": "reduction",
    "o": "out",
    "output": "out",
    "output_dir": "out",
    "output_file": "out",
    "reduction": "sweep",
}

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
            if isinstance(argument, str):  # not a default
                value = self._read(argument)
            return self._field["convert"](value)
        except InputError as error:  # in the field's own words
            raise error.inside(f"--{self._name}") from error
        except ValueError:
            allowed = self._field["allowed"]
            raise InputError(
                field=f"--{self._name}",
                value=value,
                allowed=allowed,
            ) from None


def integer(name, default, help_text, least=None):
    """Define a flag of whole numbers, of `least` or more; its default may be None."""
    parser = _Parser(name, fields.count(least=least), "int", literal)
    return flags.DEFINE(parser, name, default, help_text, allow_override=True)


def real(name, default, help_text, least=None, above=None):
    """Define a flag of finite numbers, of `least` or more, or above a bound."""
    field = fields.number(least=least, above=above)
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
    if not holder.value:
        values = values or flags.FLAGS[holder.name].help.partition(";")[0]
        raise InputError("is missing", field=f"--{holder.name}", hint=f"give {values}")
    return holder.value


def define_config(help_text="a config file, such as configs/quickstart.py"):
    """Define --config; `run_config`, `configs` or `config_or_base` reads it."""
    help_text += "; --config.FIELD=VALUE changes a field"
    return repeated("config", [], help_text)


def weights():
    """Define --weights."""
    help_text = (
        "a .npz, .safetensors or .pth file, a folder with config.json and weights, the "
        "folder of a run, or hf://OWNER/NAME"
    )
    return text("weights", None, help_text)


def macs():
    """Define --macs, which stands for two fields of the config: see `_take_macs`."""
    help_text = (
        "a share of the dense model's multiply-adds, such as 0.5, that the named "
        "method or else the recommended one reduces it to; docs/comparison.md says "
        "which, and why"
    )
    parser = _Parser("macs", fields.share(), "float", literal)
    return flags.DEFINE(parser, "macs", None, help_text, allow_override=True)


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
            raise InputError(
                f"is given without --{lacking}",
                field=f"--{given}",
                allowed="both or neither",
            )
        return {name: literal(value) for name, value in typed.items()}

    return read


def trained_model(for_figures=False, also_read=()):
    """Define --config, --weights, --macs, --mean, --std, --averaged and --checkpoint.

    for_figures: take a run's latest weights, as the best were chosen on images that may
        be those of the figures, and without a typed field the weights' own images
    also_read: fields of the config that the command reads beside OF_TRAINED

    Returns a function that reads them: the arguments of `with_config.load_with_config`.
    """
    define_config()
    path = weights()
    macs()
    normalized = normalization()
    of_steps = "the averages of the weights over the steps of their training"
    usual = "latest" if for_figures else "best"
    which = f"best or latest of a run, default: {usual}; of a file with several models "
    which += "a key, or a start of names, such as teacher"
    holders = [switch("averaged", False, of_steps), text("checkpoint", None, which)]

    def read():
        typed = {"path": required(path), "normalization": normalized()}
        typed["config"], typed["overrides"] = config_or_base()
        _check_of_trained(typed["config"], (*OF_TRAINED, *also_read))
        if for_figures and typed["overrides"] == ():
            # Neither --config nor a field of it is typed: the weights say it all, such
            # as images of any size.
            typed["config"] = None
        return typed | {holder.name: holder.value for holder in holders}

    return read


def data(default=""):
    """Define --data; `default`: the data without it, in words."""
    help_text = f"a folder with a folder of images for each class, {IMAGE_SETS}"
    if default:
        help_text += f"; default: {default}"
    return text("data", None, help_text)


def resize():
    """Define --resize."""
    help_text = "none: images have the right size already; default: the model's own"
    return choice("resize", None, ["deit", "none"], help_text)


def limit():
    """Define --limit."""
    help_text = "how many images to take, evenly spaced over the set; default: all"
    return integer("limit", None, help_text, 1)


def valid_labels():
    """Define --valid_labels, which data/valid_labels.py reads."""
    help_text = (
        "the classes that the model chooses among: data, those of the images, or a "
        "file of labels, one a line; default: all"
    )
    return text("valid_labels", None, help_text)


def evaluated_images():
    """Define --data, --set, --resize and --limit.

    Returns a function that writes --data, --set and --resize into a config and returns
    the value of --limit; and the flag --data, which is checked before weights are read.
    """
    name = data("config.data")
    resized = resize()
    count = limit()
    set_name = text("set", "", "a name in config.eval.sets, instead of --data")

    def read(config):
        sets = config.eval.sets.to_dict()
        if set_name.value and name.value:
            raise InputError("is given with --data", field="--set", hint="drop one")
        if set_name.value and not sets:
            raise InputError(
                f"is {set_name.value!r}, but config.eval.sets is empty",
                field="--set",
                value=set_name.value,
                hint="drop it, or name images with --data",
            )
        chosen_set = {}
        remaining = {}
        if set_name.value:
            chosen_set = one_of("--set", set_name.value, sets)
            remaining[set_name.value] = chosen_set
        config.eval = {"sets": remaining, "best_set": ""}
        config.data.name = name.value or chosen_set.get("data") or config.data.name
        config.data.resize = resized.value or config.data.resize
        return count.value

    return read, name


def with_data_flag(error: InputError) -> InputError:
    """The same error, with --data where it is about images of the config.

    It is for commands with the flags of `evaluated_images`.
    """
    chosen = flags.FLAGS["data"].value or flags.FLAGS["set"].value
    if chosen or not error.field.startswith("config."):
        return error
    hint = f"name images with --data: a folder of classes, {IMAGE_SETS}"
    if error.hint:
        hint = f"{error.hint}; or {hint}"
    return error.with_facts(hint=hint)


def sweep(help_text):
    """Define --sweep, whose texts reduction/sweep_text.py reads; it can be repeated.

    Where --macs is typed, too, it is the cost of all its reductions.
    """
    return repeated("sweep", [], f"METHOD=MACS or METHOD:FIELD=V1,V2: {help_text}")


def typed_macs() -> float | None:
    """The value of --macs; None where it is not typed."""
    return flags.FLAGS["macs"].value


def dtype(of):
    """Define --dtype; None stands for the device's fast one."""
    help_text = f"{of}; default: bfloat16, and float32 on CPUs"
    return choice("dtype", None, ["float32", "bfloat16", "float16"], help_text)


def gelu():
    """Define --gelu of optimized programs; None stands for what `optimize` takes."""
    help_text = (
        "of the optimized program; default: the model's, but tanh for exact on GPUs, "
        "not in float32"
    )
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
                raise _unexpected(argv[1])
            if compiles:
                keep_programs(jax_was_there)
            words = [argv[1:]] if takes_words else []
            return main(*words) or 0
        except BrokenPipeError:  # the reader of our output has gone: `... | head`
            return process.discard_output()
        except (Exception, KeyboardInterrupt) as error:
            line, status = process.ending(_as_typed(error))
            if line is None:
                raise
        print(line, file=sys.stderr)
        return process.leave(status)

    logging.set_verbosity(logging.WARNING)  # libraries report each of their steps
    logging.get_absl_handler().setFormatter(Formatter())  # as printed lines
    warnings.formatwarning = _warning_lines()
    app.run(guarded, flags_parser=functools.partial(_parse, takes_words=takes_words))


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


def _as_typed(error):
    """The same error, an InputError about --macs by the name of this flag."""
    typed = "macs" in flags.FLAGS and flags.FLAGS["macs"].value is not None
    if typed and isinstance(error, InputError):
        return error.renamed({"config.reduction.macs": "--macs"})
    return error


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


def _parse(argv, takes_words):
    """Parse the flags in `argv`; return its words without them.

    A mistake ends the process, as --help does.

    takes_words: whether words that belong to no flag are the command's images
    """
    flags.FLAGS.set_gnu_getopt(True)  # flags may stand behind such words
    words = [*map(_expand_home, argv)]
    plain = []
    if "--" in words:  # behind which is no flag
        end = words.index("--")
        plain = words[end + 1 :]
        words = words[:end]
    try:
        words = _with_own_names(words, takes_words)
        words = _take_overrides(words)
        _check_has_value(words[-1])
        rest = flags.FLAGS(words)
        placed, others = _placed([*rest[1:], *plain], takes_words)
        rest = flags.FLAGS([rest[0], *placed, "--", *others])
        _check_given_once()
        _check_sweep()
        _take_macs()
        return rest
    except SystemExit:  # --help ends absl's commands with 1
        sys.exit(0)
    except BrokenPipeError:  # of --help
        sys.exit(process.discard_output())
    except flags.UnrecognizedFlagError as error:
        mistake = _unknown(error.flagname)
    except (InputError, flags.Error) as error:
        mistake = error
        # absl words an InputError of a `_Parser` anew, as an error of its own.
        is_own = isinstance(error, InputError)
        if not is_own and isinstance(error.__context__, InputError):
            mistake = error.__context__
    print(f"error: {mistake}", file=sys.stderr)
    sys.exit(InputError.status)


def _expand_home(word):
    """A word such as --weights=~/w.pth or csv:~/a.csv, which shells leave as it is."""
    parts = re.fullmatch(r"((?:-[^=]*=)?(?:csv:|folder:)?)(.*)", word, re.DOTALL)
    return parts[1] + os.path.expanduser(parts[2])


def _with_own_names(words, takes_words):
    """The words of a command line, flags by the names that this command has for them.

    Arguments are those of `_parse`.
    """
    named = words[:1]
    for place, word in enumerate(words[1:], start=1):
        match = re.fullmatch(r"--?([a-zA-Z][^=]*)(=.*)?", word, re.DOTALL)
        if not match:
            named.append(word)
            continue
        name = match[1]
        if "config.eval.sets." not in name:  # names of sets are the user's own
            name = name.replace("-", "_")
        value = match[2] or ""
        following = value[1:] or "".join(words[place + 1 : place + 2])
        own = _own_name(name, following)
        if own is not None:
            named.append(f"--{own}{value}")
        elif not takes_words or SYNONYMS.get(name, name) != "data":
            named.append(f"--{name}{value}")
        elif value:  # an image; without the sign it is the next word
            named.append(following)
    return named


def _own_name(name, value):
    """What a typed name is to this command: a flag, "config.FIELD", or None.

    A path behind --model or --checkpoint is --weights, a share behind --reduction is
    --macs, and the name of a program behind export's --output is --out. SYNONYMS has
    other names; else it is the one field of that name.

    value: the word behind it
    """
    own = _own_flags()
    if "weights" in own and os.path.exists(value):
        if name == "model" or (name == "checkpoint" and os.path.isfile(value)):
            return "weights"
    is_number = fields.number_in(value) is not None
    if name == "reduction" and "macs" in own and is_number:
        return "macs"
    if name == "output" and "out" in own and value.endswith((".onnx", ".jax")):
        return "out"
    is_field = re.match("(no)?config[.]", name)
    if is_field or name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS:
        return name
    if SYNONYMS.get(name) in (*own, "help"):
        return SYNONYMS[name]
    found = _fields_read(name)
    return found[0] if len(found) == 1 else None


def _placed(words, takes_words):
    """(words that can only be values of flags, with these; other words) of no flag.

    They are a config, weights and images, in this order. Where words are images, one
    before them that is another file is the weights. What can only be weights by its
    name is the weights, wherever it stands.
    """
    free = []
    for name in ("weights", "data"):
        if name in flags.FLAGS and not flags.FLAGS[name].present:
            free.append(name)
    placed = []
    others = []
    named = [word for word in words if _names_weights(word)]
    if "weights" in free and named:
        free.remove("weights")
        placed.append(f"--weights={named[0]}")
        words = [*words]
        words.remove(named[0])
    for word in words:
        kind, _ = mimetypes.guess_type(word)
        is_path = ":" in word or os.path.exists(word)
        if takes_words:
            is_image = os.path.isdir(word) or (kind or "").startswith("image/")
            is_path = is_path and not others and not is_image
        if "config" in flags.FLAGS and re.search(r"\.py(:|$)", word):
            placed.append(f"--config={word}")
        elif free and is_path:
            placed.append(f"--{free.pop(0)}={word}")
        else:
            others.append(word)
    return placed, others


def _names_weights(word):
    """Whether a word is by its name a path of weights, of a file that may not exist."""
    is_folder = any(os.path.exists(os.path.join(word, name)) for name in WEIGHTS_FILES)
    return is_folder or word.endswith(WEIGHTS_ENDINGS)


def _check_has_value(word):
    """Raise InputError where the last word is a flag that lacks its value."""
    name = re.sub("^--?", "", word)
    if not word.startswith("-") or name not in flags.FLAGS:
        return
    flag = flags.FLAGS[name]
    if not flag.boolean:
        raise InputError(
            "has no value",
            field=f"--{name}",
            hint=f"give {flag.help.partition(';')[0]}",
        )


def _check_given_once():
    """Raise InputError for two values of a flag that names one thing.

    Of other flags the last value counts, so that one can be added to a command.
    """
    for name in ("weights", "data", "macs"):
        if name in flags.FLAGS and flags.FLAGS[name].present > 1:
            raise InputError(
                f"is given {flags.FLAGS[name].present} times",
                field=f"--{name}",
                value=flags.FLAGS[name].value,
                allowed="once",
            )


def _check_sweep():
    """Raise InputError for --sweep beside a field that names the reduction, too."""
    if "sweep" not in flags.FLAGS or not flags.FLAGS["sweep"].value:
        return
    for other in typed_reduction():
        raise InputError(
            f"is given with {other}",
            field="--sweep",
            allowed="one of the two",
        )


def _unknown(name):
    """The InputError for a flag that does not exist, with a suggestion."""
    hint = _meant(name)
    allowed = ""
    if not hint:
        allowed = ", ".join([f"--{flag}" for flag in _own_flags()]) or "none"
    return InputError("is not a flag", field=f"--{name}", allowed=allowed, hint=hint)


def _own_flags():
    """The names of the flags that --help of this command shows."""
    return [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]


def _meant(name):
    """A hint at the flags and fields that `name` is like, "" if there are none."""
    names = _own_flags()
    head, dot, tail = name.partition(".")
    candidates = []
    flag = closest(FORMER.get(head, head), names)
    if flag is not None:
        candidates.append(f"{flag}{dot}{tail}")
    candidates += _fields_read(name)
    if not candidates:
        return ""
    return f"did you mean --{' or --'.join(candidates)}?"


def _fields_read(name):
    """The "config.FIELD" that `name` may be, of those that this command reads."""
    if "config" not in _own_flags():
        return []
    found = [*filter(_is_read, fields_called(load_config(BASE), name))]
    is_batch = name in ("batch", "batch_size")
    if is_batch and not found and _is_read("eval_batch_size"):
        found = ["eval_batch_size"]
    return [f"config.{field}" for field in found]


def _is_read(field):
    """Whether this command reads a field of the config."""
    own = _own_flags()
    if "averaged" not in own:  # of `trained_model`
        return "config" in own
    read = OF_TRAINED
    if "set" in own:  # of `evaluated_images`
        read = (*OF_TRAINED, *OF_IMAGES)
    return _is_one_of(field, read)


def _is_one_of(field, read):
    """Whether a field of the config is one of `read`, or in one of its groups."""
    return any(f"{field}.".startswith(f"{each}.") for each in read)


def _check_of_trained(config, read):
    """Raise InputError for a typed field of the config that nothing here reads.

    It is for commands on trained weights. A field that no config has is refused later.

    read: groups and fields that the command reads
    """
    known = {*dotted_fields(config)}
    for field, _ in _overrides:
        is_field = field in known or field.startswith("eval.sets.")  # sets of any name
        if _is_one_of(field, read) or not is_field:
            continue
        leaf = field.removesuffix(".name").rpartition(".")[2]  # --data is data.name
        raise InputError(
            "is a field that this command does not read",
            field=f"config.{field}",
            allowed=f"fields of {', '.join(read)}",
            hint=_meant(leaf),
        )


def _unexpected(word):
    """The InputError for a word that is no flag's value."""
    lacking = [
        name
        for name in ("macs", "weights", "data", "out")
        if name in _own_flags() and not flags.FLAGS[name].present
    ]
    hint = "see --help for flags"
    if "macs" in lacking and fields.number_in(word) is not None:
        hint = f"did you mean --macs={word}?"
    elif {"weights", "data"} & {*lacking}:
        hint = f"there is no such file or folder; {hint}"
    elif "out" in lacking:
        hint = f"did you mean --out={word}?"
    return InputError(
        "is an unexpected argument",
        field=repr(word),
        value=word,
        hint=hint,
    )


# The config of a command line

_overrides = Overrides()  # of the command line that `run` has parsed


def _take_overrides(words):
    """Store the overrides among the words of a command line, and return the rest.

    An override is --config.FIELD=VALUE or --config.FIELD VALUE; for a switch
    --config.FIELD (True, not a text) or --noconfig.FIELD (False).
    """
    global _overrides
    rest = []
    overrides = []
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
        if field == METHOD and fields.number_in(str(text)) is not None:
            overrides.append((MACS, text))
            text = "auto"
        elif field == METHOD and re.search("[:=]", str(text)):
            text, *typed = fields_of_text(text)
            overrides += typed
        overrides.append((field, text))
    if overrides and "config" not in flags.FLAGS:
        raise InputError(
            "is for commands with a config",
            field=f"--config.{overrides[0][0]}",
            hint="see --help",
        )
    _overrides = Overrides(overrides)
    return rest


def _take_macs():
    """Store --macs as the overrides that it stands for.

    The method is the typed one, or that of a --config; else the recommended one, as
    `load` takes it for a number. With --sweep it is the cost of those reductions.

    Raises InputError where the cost is typed twice.
    """
    global _overrides
    if "macs" not in flags.FLAGS or flags.FLAGS["macs"].value is None:
        return
    if is_typed(MACS):
        raise InputError(
            f"is given with --config.{MACS}",
            field="--macs",
            allowed="one of the two",
        )
    if "sweep" in flags.FLAGS and flags.FLAGS["sweep"].value:
        return
    stands_for = [(MACS, flags.FLAGS["macs"].value)]
    if not is_typed(METHOD) and not flags.FLAGS["config"].value:
        stands_for.append((METHOD, "auto"))
    _overrides = Overrides([*_overrides, *stands_for])


def typed_reduction() -> list[str]:
    """The typed --config.FIELD that name the method or its cost; --macs is none."""
    return [f"--config.{field}" for field in (METHOD, MACS) if is_typed(field)]


def is_typed(field: str) -> bool:
    """Whether the command line has --config.FIELD."""
    return any(name == field for name, _ in _overrides)


def run_config() -> tuple[str, "RunConfig"]:
    """(name, RunConfig) of the only --config, with --config.FIELD=VALUE applied to it.

    The RunConfig has the fields in objects by their subject: config.lr is `optim.lr`.

    Raises InputError for a mistake in it.
    """
    from imagepiece_jax.config.run import RunConfig

    path = _only_path()
    config = load_config(path)
    _overrides.apply(config)
    return config_name(path), RunConfig.from_config(config)


def _only_path():
    """What --config names. Raises InputError where it is given more than once."""
    paths = required(flags.FLAGS["config"])
    if len(paths) > 1:
        raise InputError(
            f"is given {len(paths)} times",
            field="--config",
            value=paths,
            allowed="once",
        )
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
            raise InputError(
                f"{path} is the second config named {name}",
                field="--config",
                value=path,
                allowed="files with different names",
            )
        by_name[name] = load_config(path)
        try:
            _overrides.apply(by_name[name])
            RunConfig.from_config(by_name[name])
        except InputError as error:
            if len(paths) == 1:
                raise
            raise error.inside(place=path) from error
    return by_name


def config_or_base() -> tuple["ConfigDict", Overrides | None]:
    """(the only --config, None), or without one (configs/base.py, the overrides).

    Overrides are applied to a --config, but not to configs/base.py: what weights say
    goes over its fields, and overrides over both (`load_with_config`).
    """
    if flags.FLAGS["config"].value:
        name = config_name(_only_path())
        return configs()[name], None
    extras.check("this command", "ml_collections")  # nobody has named a config
    return load_config(BASE), _overrides
