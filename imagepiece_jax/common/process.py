"""How a command's process ends: the last line and the exit status."""

import atexit
import contextlib
import errno
import os
import signal
import sys
import traceback

from imagepiece_jax.common import signals
from imagepiece_jax.errors import InputError, RunError, Stopped


def ending(error):
    """(last line, exit status) of a command; (None, None) where a traceback is due.

    A traceback is due to a fault of the code alone.
    """
    if isinstance(error, KeyboardInterrupt):
        signum = signals.arrived or signal.SIGINT
        return signals.SIGNALS[signum], 128 + signum
    if isinstance(error, Stopped):
        return error, error.status
    if isinstance(error, InputError | RunError):
        return f"error: {error}", error.status
    if isinstance(error, MemoryError):
        reason = str(error) or "for an array"
        return f"error: this machine has too little memory: {reason}", RunError.status
    # Files are written by common/files.py, whose errors are RunErrors with a path.
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        reason = error.strerror
        return f"error: the output cannot be written ({reason})", RunError.status
    if isinstance(error, FileNotFoundError) and not _has_working_directory():
        return "error: the working directory has been deleted", InputError.status
    if isinstance(error, OSError):
        about = "" if error.filename is None else f"{error.filename}: "
        return f"error: {about}{error.strerror or error}", RunError.status
    platforms = os.environ.get("JAX_PLATFORMS")
    if isinstance(error, AssertionError | RuntimeError) and platforms is not None:
        *_, last = traceback.extract_tb(error.__traceback__)
        if last.filename.endswith("xla_bridge.py"):  # where JAX starts the platforms
            text = f"JAX_PLATFORMS is {platforms!r}, which JAX cannot start here"
            return ending(InputError(text))
    return None, None


def _has_working_directory():
    """Whether the working directory still exists."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def discard_output():
    """Discard all further output, which nobody reads; return an exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return RunError.status


def leave(status):
    """End the process with a status, whatever threads of libraries are doing.

    A step or a compilation that is cut short may crash the interpreter's shutdown, and
    the crash would replace the status. Exit handlers run first, but not after Ctrl-C,
    for which they could take minutes.
    """
    if status != 128 + signal.SIGINT:
        atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # no reader, or a full disk
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
