"""How does a command start and end? Flags in, one sentence for a mistake out."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from imagepiece_jax.errors import InputError, RunError

EXIT_INPUT, EXIT_RUN, EXIT_INTERRUPT = 2, 1, 130


def define_config(help_text="a config file, such as configs/quickstart.py"):
    """The --config flag with its --config.FIELD=VALUE overrides; returns its holder."""
    return config_flags.DEFINE_config_file("config", None, help_text, lock_config=True)


def required(holder):
    """Value of a flag that the command cannot do without."""
    if holder.value is None:
        raise InputError(f"--{holder.name} is missing; see --help")
    return holder.value


def run(main):
    """Parse the flags, call `main()` and exit with its status (None: 0).

    InputError exits with 2, RunError with 1, an interrupt with 130, each with one line
    on stderr.
    """

    def guarded(argv):
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]!r}; see --help")
            return main() or 0
        except InputError as error:
            return _complain(error, EXIT_INPUT)
        except RunError as error:
            return _complain(error, EXIT_RUN)
        except KeyboardInterrupt:
            return _complain(
                "interrupted; the same command goes on from the last checkpoint",
                EXIT_INTERRUPT,
            )

    logging.set_verbosity(logging.WARNING)  # libraries tell each of their steps
    app.run(guarded, flags_parser=_parse)


def _parse(argv):
    """absl's parser, with every mistake in a flag or a config file as one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        sys.exit(_complain(lines[0] if lines else repr(error), EXIT_INPUT))
    except SyntaxError as error:
        message = f"config file {error.filename}, line {error.lineno}: {error.msg}"
        sys.exit(_complain(message, EXIT_INPUT))
    except OSError as error:
        message = f"config file {error.filename}: {error.strerror}"
        sys.exit(_complain(message, EXIT_INPUT))


def _complain(error, status):
    print(f"error: {error}", file=sys.stderr)
    return status


def config_path():
    """What was typed after --config."""
    return config_flags.get_config_filename(flags.FLAGS["config"])
