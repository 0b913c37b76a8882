"""The words of a command line: flags by the names that a command has for them.

Other tools and Python have other names for some, and a path, a share of the MACs or an
image may stand without one. What can be meant is taken, and what cannot is one
sentence.
"""

import itertools
import mimetypes
import os
import re
import sys

from absl import flags

from imagepiece_jax.common import fields, process
from imagepiece_jax.config.files import BASE, load_config
from imagepiece_jax.config.overrides import (
    REDUCTION,
    Overrides,
    fields_called,
    method_fields,
    model_words,
    split_overrides,
    with_reduction,
)
from imagepiece_jax.errors import InputError, closest

NOT_FOR_WEIGHTS = "is not for weights, which say their model"
# Endings of files that hold weights alone, and what a folder of weights or a run has.
WEIGHTS_ENDINGS = (".npz", ".safetensors", ".pth", ".pt", ".ckpt", ".pth.tar")
WEIGHTS_FILES = ("config.json", "open_clip_config.json")
# What a flag is called in Python or by other tools: the flag that stands for it.
SYNONYMS = {
    "batch": "batch_size",
    "batch_size": "batch",
    "crop_pct": "crop",
    "dataset": "data",
    "eval_batch_size": "batch",
    "h": "help",
    "image": "data",
    "images": "data",
    "img_size": "image_size",
    "input_size": "image_size",
    "macs": "reduction",  # its short form
    "method": "reduction",
    "o": "out",
    "output": "out",
    "output_dir": "out",
    "output_file": "out",
    "resolution": "image_size",
}
# Names that stand for none of a command's flags where it has all of these: export's
# `--output patches` is `--patches` of features, whose --out is a folder.
SEVERAL = {"output": ("patches", "out")}

_overrides = Overrides()  # of the command line that `parse` has read
_typed = {}  # {flag: the name that it was typed by first}, of that command line, too


def parse(argv, takes_words):
    """Parse the flags in `argv`; return its words without them.

    A mistake ends the process, as --help does.

    takes_words: whether words that belong to no flag are the command's images
    """
    global _overrides
    _typed.clear()
    flags.FLAGS.set_gnu_getopt(True)  # flags may stand behind such words
    words = [*map(_expand_home, argv)]
    plain = []
    if "--" in words:  # behind which is no flag
        end = words.index("--")
        plain = words[end + 1 :]
        words = words[:end]
    try:
        words = _with_own_names(words, takes_words)
        _check_have_values(words)
        words, _overrides = split_overrides(words)
        rest = flags.FLAGS(words)
        placed, others = _placed([*rest[1:], *plain], takes_words)
        rest = flags.FLAGS([rest[0], *placed, "--", *others])
        _check_given_once(argv)
        _check_config()
        _check_sweep()
        return rest
    except SystemExit:  # --help ends absl's commands with 1
        sys.exit(0)
    except BrokenPipeError:  # of --help
        sys.exit(process.discard_output())
    except flags.UnrecognizedFlagError as error:
        mistake = _unknown(error.flagname)
    except (InputError, flags.Error) as error:
        mistake = as_typed(error)
        # absl words an InputError of a `cli._Parser` anew, as an error of its own.
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

    Arguments are those of `parse`.
    """
    named = words[:1]
    for index, word in enumerate(words[1:], start=1):
        match = re.fullmatch(r"--?([a-zA-Z][^=]*)(=.*)?", word, re.DOTALL)
        if not match:
            named.append(word)
            continue
        name = match[1].replace("-", "_")
        value = match[2] or ""
        following = value[1:] or "".join(words[index + 1 : index + 2])
        own = _own_name(name, following)
        if own is not None:
            _typed.setdefault(own, name)
            named.append(f"--{own}{value}")
        elif not takes_words or SYNONYMS.get(name, name) != "data":
            named.append(f"--{name}{value}")
        elif value:  # an image; without the sign it is the next word
            named.append(following)
    return named


def _own_name(name, value):
    """What a typed name is to this command: a flag, "config.FIELD", or None.

    A path behind --model or --checkpoint is --weights, a name behind --model is --name,
    and the name of a program behind export's --output is --out. SYNONYMS has other
    names; else it is the one field of the config of that name.

    value: the word behind it
    """
    own = _own_flags()
    if "weights" in own and os.path.exists(value):
        if name == "model" or (name == "checkpoint" and os.path.isfile(value)):
            return "weights"
    is_name = value and "=" not in value and not value.startswith("-")
    if name == "model" and "name" in own and is_name:
        return "name"
    if name == "output" and "out" in own and value.endswith(".onnx"):
        return "out"
    if re.match("(no)?config[.]", name) or name in own:
        return name
    if _has_several(name, own):
        return None
    if SYNONYMS.get(name) in (*own, "help"):
        return SYNONYMS[name]
    if name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS:
        return name
    found = _fields_called(name)
    return found[0] if len(found) == 1 else None


def _has_several(name, own):
    """Whether a name may stand for several of a command's own flags."""
    return name in SEVERAL and {*SEVERAL[name]} <= {*own}


def _placed(words, takes_words):
    """(words that can only be values of flags, with these; other words) of no flag.

    They are a config, weights and images, in this order. Where words are images, one
    before them that is another file is the weights. What can only be weights by its
    name is the weights, wherever it stands.
    """
    own = _own_flags()
    free = []
    for name in ("weights", "data"):
        if name in own and not flags.FLAGS[name].present:
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
        if re.search(r"\.py(:|$)", word) and "config" in own:
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


def _check_have_values(words):
    """Raise InputError where a flag lacks its value: it is last, or before another.

    absl would take the other flag as its value: what is typed as `--weights $FILE` is
    no more than `--weights` where a shell has no such variable.
    """
    for word, following in itertools.zip_longest(words, words[1:]):
        name = re.sub("^--?", "", word)
        if not word.startswith("-") or name not in flags.FLAGS:
            continue
        flag = flags.FLAGS[name]
        if flag.boolean or not (following is None or _is_flag(following)):
            continue
        problem = "has no value"
        if following is not None:
            problem += f" before {following}"
        hint = f"give {flag.help.partition(';')[0]}"
        raise InputError(f"--{name}", problem=problem, hint=hint)


def _is_flag(word):
    """Whether a word is one of the command's flags, with or without a value."""
    match = re.fullmatch(r"--(no)?([^=]+)(=.*)?", word, re.DOTALL)
    if not match:
        return False
    negated, name, _ = match.groups(default="")
    known = name in flags.FLAGS or negated + name in flags.FLAGS
    return known or name.startswith("config.")


def _check_given_once(words):
    """Raise InputError for two values of a flag that names one thing.

    Of other flags the last value counts, so that one can be added to a command.

    words: as they were typed, whose names of the flag the sentence has
    """
    for name in ("weights", "data", "reduction"):
        if name not in flags.FLAGS or flags.FLAGS[name].present < 2:
            continue
        typed = []
        for word in words:
            called = re.sub("^--?", "", word.partition("=")[0])
            if word.startswith("-") and SYNONYMS.get(called, called) == name:
                typed.append(f"--{called}")
        typed = [*dict.fromkeys(typed)] or [f"--{name}"]
        problem = f"is given {flags.FLAGS[name].present} times"
        allowed = "once"
        if len(typed) > 1:
            problem = f"is given with {typed[1]}"
            allowed = "one of the two"
        raise InputError(typed[0], None, allowed, problem=problem)


def _check_config():
    """Raise InputError for a config, or a field of one, where weights are meant.

    In place of fields it has the words of `load` that say the same.
    """
    own = _own_flags()
    has_config = "config" in own
    beside = "weights" in own and flags.FLAGS["weights"].present
    problem = "is for commands with a config"
    if "weights" in own:
        problem = NOT_FOR_WEIGHTS
    if _overrides and (beside or not has_config):
        field = f"--config.{_overrides[0][0]}"
        raise InputError(field, None, _listed_flags(), problem=problem)
    if beside and has_config and flags.FLAGS["config"].present:
        raise InputError("--config", None, "one of the two", problem=problem)


def _check_sweep():
    """Raise InputError for --sweep beside what names the reduction, too."""
    if "sweep" not in _own_flags() or not flags.FLAGS["sweep"].value:
        return
    others = [f"--config.{name}" for name, _ in _overrides if name == REDUCTION]
    typed = flags.FLAGS["reduction"].value
    if typed and fields.number_in(typed) is None:  # a number is the cost of each
        others.append(typed_reduction())
    if others:
        problem = f"is given with {others[0]}"
        raise InputError("--sweep", None, "one of the two", problem=problem)


def _unknown(name):
    """The InputError for a flag that does not exist, with a suggestion."""
    if name == "config" and "weights" in _own_flags():
        return InputError("--config", None, _listed_flags(), problem=NOT_FOR_WEIGHTS)
    hint = _meant(name)
    allowed = "" if hint else _listed_flags()
    return InputError(f"--{name}", allowed=allowed, problem="is not a flag", hint=hint)


def _own_flags():
    """The names of the flags that --help of this command shows."""
    return [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]


def _listed_flags():
    """What this command reads, in words."""
    return ", ".join([f"--{flag}" for flag in _own_flags()]) or "none"


def _meant(name):
    """A hint at the flags and fields that `name` is like, "" if there are none."""
    own = _own_flags()
    head, dot, tail = name.partition(".")
    candidates = []
    flag = closest(head, own)
    if _has_several(name, own):
        candidates += SEVERAL[name]
    elif flag == "reduction" and tail:
        candidates.append(f"reduction=METHOD:{tail}=..")
    elif flag is not None:
        candidates.append(f"{flag}{dot}{tail}")
    candidates += _fields_called(name)
    if "config" not in own and "reduction" in own and name in method_fields():
        candidates.append(f"reduction=METHOD:{name}=..")
    if "model" in own and name in model_words():
        candidates.append(f"model={name}=..")
    if not candidates:
        return ""
    return f"did you mean --{' or --'.join(candidates)}?"


def _fields_called(name):
    """The "config.FIELD" that `name` may be, where the command has a config."""
    if "config" not in _own_flags():
        return []
    return [f"config.{field}" for field in fields_called(load_config(BASE), name)]


def unexpected(word):
    """The InputError for a word that is no flag's value."""
    lacking = [name for name in _own_flags() if not flags.FLAGS[name].present]
    hint = "see --help for flags"
    if "reduction" in lacking and fields.number_in(word) is not None:
        hint = f"did you mean --reduction={word}?"
    elif {"weights", "data"} & {*lacking}:
        hint = f"there is no such file or folder; {hint}"
    elif "out" in lacking:
        hint = f"did you mean --out={word}?"
    return InputError(repr(word), word, problem="is an unexpected argument", hint=hint)


def reduction() -> str | None:
    """The value of --reduction, but None beside --sweep, whose cost it is."""
    own = _own_flags()
    if "reduction" not in own or ("sweep" in own and flags.FLAGS["sweep"].value):
        return None
    return flags.FLAGS["reduction"].value


def typed_reduction() -> str:
    """The flag of the reduction as it was typed: --reduction, or such as --macs."""
    return f"--{_typed.get('reduction', 'reduction')}"


def check_is_name(name: str):
    """Raise InputError for a field behind --model that lacks its value.

    What stands there without a value is the model's name.
    """
    if _typed.get("name") == "model" and name.removeprefix("arch.") in model_words():
        problem = f"is {name!r}, a field without its value"
        allowed = "FIELD=VALUE, such as num_heads=3"
        raise InputError("--model", name, allowed, problem=problem)


def overrides() -> Overrides:
    """The typed fields of the config; --reduction stands for some."""
    return with_reduction(_overrides, reduction())


def as_typed(error):
    """The same error, an InputError about a field by the name that was typed."""
    if not isinstance(error, InputError):
        return error
    swept = "sweep" in flags.FLAGS and flags.FLAGS["sweep"].value
    if swept and error.place.startswith("sweep"):
        error = error.with_facts(place=f"--{error.place}")
    names = {}
    if not error.place.startswith("config file"):  # which nobody has typed over yet
        names = _short_names()
    if "reduction" in flags.FLAGS:
        same = ["--reduction"]
        if flags.FLAGS["reduction"].value is not None:
            same.append(f"config.{REDUCTION}")
        names |= dict.fromkeys(same, typed_reduction())
    return error.renamed(names)


def _short_names():
    """{"config.FIELD": the flag} of fields that were typed by another name."""
    names = {}
    for own, name in _typed.items():
        if own.startswith("config.") and name != own:
            names[own] = f"--{name}"
    return names
