"""Command line of every command: shared flags, one-sentence errors.

Commands can be imported side by side, so each flag here may be defined again.
"""

import atexit
import contextlib
import dataclasses
import functools
import inspect
import io
import math
import os
import signal
import sys
import traceback

from absl import app, flags, logging

from imagepiece_jax import config_flags
from imagepiece_jax.common import compiled
from imagepiece_jax.errors import InputError, RunError, Stopped, closest

DTYPES = ("float32", "bfloat16", "float16")

flags.disclaim_key_flags()  # --help of a command shows the flags that it asks for here

_string = functools.partial(flags.DEFINE_string, allow_override=True)
_enum = functools.partial(flags.DEFINE_enum, allow_override=True)


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
    help_text = (
        "a .npz, .safetensors or .pth file, a folder with config.json and weights, the "
        "folder of a run, or hf://OWNER/NAME"
    )
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
            raise InputError(
                f"--{next(iter(texts))} is given alone; --mean and --std go together"
            )
        return {name: _numbers(text) for name, text in texts.items()}

    return given


def checkpoint():
    """Define --checkpoint."""
    kinds = ["best", "latest"]
    return _enum("checkpoint", "best", kinds, "which of a run's checkpoints")


def averaged():
    """Define --averaged."""
    help_text = "the averages of the weights over the steps of their training"
    return flags.DEFINE_bool("averaged", False, help_text, allow_override=True)


def data(default=""):
    """Define --data; `default`: what a command takes without it, in words."""
    help_text = "csv:FILE, folder:PATH, imagenet2012 or digits"
    return _string("data", None, help_text + (f"; default: {default}" * bool(default)))


def resize():
    """Define --resize."""
    help_text = "none: images have the right size already; default: the model's own"
    return _enum("resize", None, ["deit", "none"], help_text)


def limit():
    """Define --limit."""
    help_text = "the first so many images of the data, for a rehearsal; default: all"
    return flags.DEFINE_integer("limit", None, help_text, 1, allow_override=True)


def sweep(help_text):
    """Define --sweep, which can be given more than once."""
    return config_flags.repeated("sweep", f"METHOD:FIELD=V1,V2: {help_text}")


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


def options(cls):
    """Define a flag for every field of the dataclass `cls`; return what makes one.

    A field's metadata has its `kind` (int, float or str) and `help`.
    """
    define = {int: flags.DEFINE_integer, float: flags.DEFINE_float}
    holders = [
        define.get(field.metadata["kind"], flags.DEFINE_string)(
            field.name, field.default, field.metadata["help"], allow_override=True
        )
        for field in dataclasses.fields(cls)
    ]
    # Where another module defines a flag of that name, its default is not ours.
    return lambda: cls(**{flag.name: flag.value for flag in holders if flag.present})


def run(main, *, compiles=True):
    """Parse the flags, call `main()` and exit with its status (None: 0).

    compiles: programs that JAX compiles are kept for the next process.

    A `main` with a parameter gets the words that belong to no flag, which may stand
    anywhere. InputError exits with 2, RunError with 1, a signal with 128 and its number
    (Ctrl-C: 130, SIGTERM: 143), each with one line on stderr; to be stopped is no
    error, and not called one.
    """
    takes_words = bool(inspect.signature(main).parameters)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show, not being UTF-8, must not stop a run.
        sys.stdout.reconfigure(errors="backslashreplace")

    def guarded(argv):
        try:
            if argv[1:] and not takes_words:
                raise InputError(_unexpected(argv[1]))
            if compiles:
                _keep_programs()
            return (main(argv[1:]) if takes_words else main()) or 0
        except (InputError, RunError) as error:
            return _leave(_complain(error, error.status))
        except Stopped as stopped:
            return _leave(_stop(stopped, stopped.status))
        except MemoryError as error:
            reason = str(error) or "for an array"
            text = f"this machine has too little memory: {reason}"
            return _leave(_complain(text, RunError.status))
        except (AssertionError, RuntimeError) as error:
            if not _is_of_backends(error):
                raise
            return _leave(_complain(_no_backend(), InputError.status))
        except BrokenPipeError:  # the reader of our output has gone: `... | head`
            return _unread()
        except KeyboardInterrupt:
            return _leave(_stop("interrupted", 128 + signal.SIGINT))

    logging.set_verbosity(logging.WARNING)  # libraries report each of their steps
    app.run(guarded, flags_parser=functools.partial(_parse, anywhere=takes_words))


def _is_of_backends(error):
    """Whether JAX raised it where it starts the platform that JAX_PLATFORMS names."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return last.filename.endswith("xla_bridge.py") and "JAX_PLATFORMS" in os.environ


def _no_backend():
    return (
        f"JAX_PLATFORMS is {os.environ['JAX_PLATFORMS']!r}, which JAX cannot start "
        "here; allowed are platforms that this machine has, such as cpu"
    )


def _keep_programs():
    if "jax" in sys.modules:  # which has read its settings
        return
    folder, is_new = compiled.keep_programs()
    if is_new:
        print(
            f"compiled programs are kept in {folder} "
            "(set JAX_COMPILATION_CACHE_DIR= to keep none)",
            file=sys.stderr,
        )


def _parse(argv, anywhere):
    """Return what is left of `argv` after flags and overrides; exit at a mistake.

    `anywhere`: flags are also read after the first word that is none.
    """
    flags.FLAGS.set_gnu_getopt(anywhere)
    try:
        return flags.FLAGS(config_flags.take_overrides(argv))
    except SystemExit:  # --help ends absl's commands with 1
        sys.exit(0)
    except BrokenPipeError:  # of --help
        sys.exit(_unread())
    except flags.UnrecognizedFlagError as error:
        sys.exit(_complain(_unknown(error.flagname), InputError.status))
    except (InputError, flags.Error) as error:
        sys.exit(_complain(error, InputError.status))


def _numbers(text):
    """Return "1,2" as a tuple of floats, any other text as it is."""
    try:
        return tuple(map(float, text.strip("() ").split(",")))
    except ValueError:
        return text


def _unknown(name):
    """Return one sentence on a flag that does not exist."""
    known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    head, dot, tail = name.partition(".")
    similar = closest(head, known)
    meant = [] if similar is None else [f"--{similar}{dot}{tail}"]
    if "config" in known:
        meant += [f"--config.{field}" for field in config_flags.fields_named(name)]
    if meant:
        return f"--{name} is not a flag; did you mean {' or '.join(meant)}?"
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
    return _stop(f"error: {error}", status)


def _stop(reason, status):
    print(reason, file=sys.stderr)
    return status
