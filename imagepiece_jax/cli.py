"""Running a command, a typed function, and ending its process."""

import atexit
import contextlib
import inspect
import io
import itertools
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from imagepiece_jax.common import checks, progress, signals
from imagepiece_jax.errors import InputError, RunError, Stopped


def run_command(function: Callable[..., int | None], prog: str | None = None) -> None:
    """Call a typed function with the words of sys.argv, and exit with its status.

    tyro explains wrong words, with status 2. `run_and_exit` ends the process.

    function: its typed parameters are the options. Positional words are fields of its
        dataclasses.
    prog: the program's name in its help
    """

    def parse_and_call():
        import tyro  # here, because an interruption is a line by now

        if function.__module__.startswith("imagepiece_jax.commands"):
            check_option_names(function)
        config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
        return tyro.cli(function, prog=prog, config=config)

    run_and_exit(parse_and_call)


def check_option_names(function: Callable) -> None:
    """Refuse words of sys.argv that are no option of a command."""
    # tyro would first miss WEIGHTS, and call it weights.weights.
    option_forms = {"help": "--help"}
    for name, parameter in inspect.signature(function).parameters.items():
        fields = getattr(parameter.annotation, "__dataclass_fields__", None)
        option_forms |= {option: f"--{option}" for option in fields or [name]}
        if fields:  # the field with the parameter's name is positional
            option_forms[name] = name.upper()
    for word in itertools.takewhile(lambda word: word != "--", sys.argv[1:]):
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and option_forms.get(name) != f"--{name}":
            form = option_forms.get(checks.find_similar_name(name, option_forms) or "")
            way_out = f"; did you mean {form}?" if form else ""
            raise InputError(f"{word} is no option{way_out}")


# OSErrors that a mistyped path causes.
WRONG_PATHS = FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError
# Texts of RuntimeErrors that a user can fix.
DEVICE_ERRORS = ("RESOURCE_EXHAUSTED", "Unable to initialize backend")


def run_and_exit(call: Callable[[], int | None]) -> None:
    """Call a command's function, and exit with its status (None: 0).

    InputError and WRONG_PATHS exit with 2, RunError and other OSErrors with 1, Ctrl-C
    with 130. stderr gets one line.
    """
    signals.exit_on_sigterm()
    progress.show_progress()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show, not being UTF-8, must not stop a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_, **__: print(
        f"warning: {message}", file=sys.stderr
    )
    try:
        status = call() or 0
        sys.stdout.flush()  # a full disk is an OSError here, not a traceback at exit
    except KeyboardInterrupt:
        _print_and_leave(130, "interrupted")
    except BrokenPipeError:  # the reader of stdout has gone: `... | head`
        leave_process(RunError.status)
    except Stopped as stopped:
        _print_and_leave(stopped.status, stopped)
    except (InputError, RunError, OSError, MemoryError) as error:
        message = re.sub(r"^\[Errno -?\d+\] ", "", str(error))  # of an OSError
        is_mistake = isinstance(error, (InputError, *WRONG_PATHS))
        status = InputError.status if is_mistake else RunError.status
        _print_and_leave(status, f"error: {message}")
    except RuntimeError as error:  # of JAX: a full or missing device
        if not any(device_error in str(error) for device_error in DEVICE_ERRORS):
            raise
        _print_and_leave(RunError.status, f"error: {error}".splitlines()[0])
    sys.exit(status)


def _print_and_leave(status, message):
    print(message, file=sys.stderr, flush=True)
    leave_process(status)


def leave_process(status: int) -> NoReturn:
    """End the process with a status, whatever libraries' threads are doing."""
    # An interrupted step or compilation may crash the interpreter at its end, and the
    # crash would replace the status.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
