"""How does a command start and end? Flags in, one sentence for a mistake out."""

import atexit
import contextlib
import functools
import inspect
import io
import os
import re
import signal
import sys

from absl import app, flags, logging

from imagepiece_jax import config_files
from imagepiece_jax.errors import InputError, RunError, Stopped

EXIT_INPUT, EXIT_RUN = 2, 1

flags.disclaim_key_flags()  # --config belongs to the command, whose --help shows it


class _ConfigFlag(flags.Flag):
    """--config FILE: `value` is the config; `given` has a pair for each time.

    The pairs are (what was typed, config): commands that compare configs take them all,
    the others the last.
    """

    given = ()
    overrides = ()  # typed without a config

    def __init__(self, help_text):
        # Commands can be imported side by side, and each of them has this flag.
        super().__init__(
            flags.ArgumentParser(),
            flags.ArgumentSerializer(),
            "config",
            default=None,
            help_string=help_text,
            allow_override=True,
        )

    def parse(self, argument):
        self.value = config_files.load(argument)
        self.given = (*self.given, (argument, self.value))

    def unparse(self):
        super().unparse()
        self.given = self.overrides = ()


def define_config(help_text="a config file, such as configs/quickstart.py"):
    """The --config flag with its --config.FIELD=VALUE overrides; returns its holder."""
    help_text += "; --config.FIELD=VALUE changes a field of it"
    return flags.DEFINE_flag(_ConfigFlag(help_text))


def required(holder):
    """Value of a flag that the command cannot do without."""
    if holder.value in (None, ""):
        help_text = flags.FLAGS[holder.name].help
        raise InputError(f"--{holder.name} is missing: {help_text}")
    return holder.value


def config_path():
    """What was typed after --config."""
    return required_configs()[-1][0]


def required_configs():
    """All configs of a command that takes several: (what was typed, config) pairs."""
    required(flags.FLAGS["config"])
    return flags.FLAGS["config"].given


def completed_by_weights(main):
    """Decorator of a command whose --weights stand in where --config is missing.

    It finds --config.FIELD=VALUE of a command line without --config in `overrides()`.
    """
    main.completed_by_weights = True
    return main


def overrides():
    """Pairs (field, text) that were typed without a config, in order."""
    return flags.FLAGS["config"].overrides


def run(main):
    """Parse the flags, call `main()` and exit with its status (None: 0).

    A `main` with a parameter gets the words that belong to no flag, such as names of
    images; they may stand before, between and behind flags. InputError exits with 2,
    RunError with 1, a signal with 128 and its number (Ctrl-C: 130, SIGTERM: 143), each
    with one line on stderr.
    """

    takes_words = bool(inspect.signature(main).parameters)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal cannot show (a name that is no UTF-8) is no reason to stop.
        sys.stdout.reconfigure(errors="backslashreplace")

    def guarded(argv):
        try:
            if takes_words:
                return main(argv[1:]) or 0
            if len(argv) > 1:
                raise InputError(_unexpected(argv[1]))
            return main() or 0
        except InputError as error:
            return _leave(_complain(error, EXIT_INPUT))
        except RunError as error:
            return _leave(_complain(error, EXIT_RUN))
        except MemoryError as error:
            reason = str(error) or "for an array"
            told = f"this machine has too little memory: {reason}"
            return _leave(_complain(told, EXIT_RUN))
        except BrokenPipeError:  # the reader of our output has gone: `... | head`
            return _unread()
        except Stopped as stopped:
            return _leave(_complain(stopped, 128 + stopped.signum))
        except KeyboardInterrupt:
            return _leave(_complain("interrupted", 128 + signal.SIGINT))

    logging.set_verbosity(logging.WARNING)  # libraries tell each of their steps
    later = getattr(main, "completed_by_weights", False)
    parse = functools.partial(_parse, anywhere=takes_words, later=later)
    app.run(guarded, flags_parser=parse)


def _parse(argv, anywhere, later):
    """What is left of `argv` once flags and overrides are taken; mistakes end here.

    `anywhere`: flags are also read behind the first word that is none; `later`:
    overrides without a config are kept for one.
    """
    flags.FLAGS.set_gnu_getopt(anywhere)
    try:
        argv, overrides = _split(argv)
        try:
            rest = flags.FLAGS(argv)
        except SystemExit:  # --help ends absl's commands with 1
            sys.exit(0)
        if overrides and "config" not in flags.FLAGS:
            raise InputError(
                f"--config.{overrides[0][0]}: this command has no config; see --help"
            )
        config = flags.FLAGS["config"] if overrides else None
        if later and overrides and config.value is None:
            config.overrides = tuple(overrides)
        elif overrides:
            _override(required_configs(), overrides)
        return rest
    except BrokenPipeError:  # of --help
        sys.exit(_unread())
    except flags.UnrecognizedFlagError as error:
        sys.exit(_complain(_unknown(error.flagname), EXIT_INPUT))
    except (InputError, flags.Error) as error:
        sys.exit(_complain(error, EXIT_INPUT))


def _override(given, overrides):
    """Every override in every config; of several, the mistake names the file."""
    for path, config in given:
        for field, text in overrides:
            try:
                config_files.override(config, field, text)
            except InputError as error:
                raise InputError(f"{path}: {error}" if given[1:] else error) from None


def _split(argv):
    """(the rest of `argv`, overrides): of each override the field and its text.

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
    return rest, overrides


def _unknown(name):
    """One sentence for a flag that there is not, with the one that may be meant."""
    known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    head, dot, tail = name.partition(".")
    meant = config_files.closest(head, known)
    if meant is not None:
        return f"--{name} is not a flag; did you mean --{meant}{dot}{tail}?"
    if not known:
        return f"--{name} is not a flag; this command has none"
    listed = ", ".join(f"--{flag}" for flag in known)
    fields = " and, for a field of the config, --config.FIELD=VALUE"
    fields = fields if "config" in known else ""
    return f"--{name} is not a flag; allowed are {listed}{fields}"


def _unexpected(word):
    if word.endswith(".py"):
        return f"{word} stands alone; did you mean --config {word}?"
    return f"{word!r} stands alone; allowed are flags, see --help"


def _unread():
    """Status where nobody reads our output; what is left of it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_RUN


def _leave(status):
    """End with this status, whatever threads of libraries are still at work.

    A step or a compilation that is cut short may crash in Python's own end, and the
    crash would take the place of the status. What was registered to be done at exit is
    done, but not after Ctrl-C, for which it could take minutes.
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
