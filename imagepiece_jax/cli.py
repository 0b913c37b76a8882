"""Running a command, a typed function, and ending its process."""

import atexit
import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from imagepiece_jax.common import cache_dirs, progress, signals
from imagepiece_jax.errors import InputError, RunError, Stopped


def run_command(
    function: Callable[..., int | None],
    prog: str | None = None,
    *,
    keeps_programs: bool = True,
) -> None:
    """Call a typed function with the words of sys.argv, and exit with its status.

    tyro explains wrong words, with status 2. `run_and_exit` ends the process.

    function: its typed parameters are the options. Positional words are fields of its
        dataclasses.
    prog: the program's name in its help
    keeps_programs: as in `run_and_exit`
    """

    def parse_and_call() -> int | None:
        import tyro  # here, because signals are handled by now

        if function.__module__.startswith("imagepiece_jax.commands"):
            for name in {"--weights", "--data"}.intersection(sys.argv):
                raise InputError(f"{name} is no option; type its value without {name}")
        config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
        return tyro.cli(function, prog=prog, config=config)

    run_and_exit(parse_and_call, keeps_programs=keeps_programs)


# OSErrors that a mistyped path causes.
WRONG_PATHS = FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError
# Texts of RuntimeErrors that a user can fix.
DEVICE_ERRORS = ("RESOURCE_EXHAUSTED", "Unable to initialize backend")


def run_and_exit(
    call: Callable[[], int | None], *, keeps_programs: bool = True
) -> None:
    """Call a command's function, and exit with its status (None: 0).

    InputError and WRONG_PATHS exit with 2, RunError and other OSErrors with 1,
    `signals.END_SIGNALS` with 128 + their number (Ctrl-C: 130). stderr gets one line.

    keeps_programs: keep JAX's compiled programs for the next process
    """
    _set_up_process()
    try:
        if keeps_programs:
            use_program_cache()
        try:
            status = call() or 0
        except SystemExit as exit_error:  # of --help and of a mistyped word
            status = exit_error.code
        sys.stdout.flush()
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
        message = str(error).partition("\n")[0]
        if not any(device_error in str(error) for device_error in DEVICE_ERRORS):
            raise
        _print_and_leave(RunError.status, f"error: {message}")
    sys.exit(status)


def _set_up_process() -> None:
    """Let a command's process handle signals, and write lines that no name breaks."""
    replace_closed_streams()
    signals.handle_ending_signals()
    progress.show_progress()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show, not being UTF-8, must not stop a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = _make_warning_formatter()


def replace_closed_streams() -> None:
    """Replace closed standard streams, as daemons have them, by the null device."""
    # A closed stream is None in Python, and its number goes to the next file that is
    # opened: prints would end up there.
    for descriptor, stream_name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream_name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.set_inheritable(descriptor, True)
            mode = "w" if descriptor else "r"
            stream = open(descriptor, mode, errors="backslashreplace")
            setattr(sys, stream_name, stream)


def _print_and_leave(status: int, message: object) -> NoReturn:
    """Print the last line on stderr, if it can be written, and leave."""
    with contextlib.suppress(OSError):  # no reader, or a full disk
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


def _make_warning_formatter() -> Callable[..., str]:
    """Make a formatter of Python's warnings: one line, once, without code location."""
    # Python forgets shown warnings whenever a library, such as JAX, changes filters.
    shown_lines = set()

    def format_warning(message: Any, *_: Any) -> str:
        line = f"warning: {message}\n"
        if line in shown_lines:
            return ""
        shown_lines.add(line)
        return line

    return format_warning


def use_program_cache() -> None:
    """Let JAX keep compiled programs for later commands; report a new folder."""
    if "jax" in sys.modules:  # imported before: its settings are somebody else's
        return
    folder, is_new = cache_dirs.keep_compiled_programs()
    if is_new:
        hint = "(set JAX_COMPILATION_CACHE_DIR= to keep none)"
        print(f"compiled programs are kept in {folder} {hint}", file=sys.stderr)
