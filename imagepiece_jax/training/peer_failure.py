"""What does a process do when another one of its run dies? Say so, and end.

JAX notices it: the coordinator's connections close, heartbeats stay away, an exchange
between devices fails. It then aborts the process with a long report, or raises. The
last words, one sentence for the person, come from here.
"""

import atexit
import ctypes
import os
import signal
import sys

STATUS = 1
# What exchanges by JAX, gloo and NCCL call the loss of a peer.
SIGNS = ("gloo", "nccl", "coordination", "barrier", "connection", "socket")

_handlers = []  # kept here: C code calls them when nothing else knows them any more


def sentence(process_id, num_processes, coordinator):
    """What is said by a process that cannot go on without another."""
    return (
        f"error: process {process_id} of {num_processes} stops, for another one has "
        f"ended or cannot be reached at {coordinator}; start all of them again with "
        "the same command: they go on from the newest checkpoint, if there is one"
    )


def speak_at_abort(text):
    """From now on an abort of this process ends with `text` on stderr and status 1.

    JAX aborts from a thread of C++, where Python's signal handlers are not reached: the
    C library gets this one.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda signum: end(text))
    _handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def leave_quietly():
    """This process ends for a reason of its own: it tells that, and nothing after it.

    While it ends, the others are told to stop, and JAX reports on them at length.
    """
    speak_at_abort("")
    atexit.register(_silence)  # runs before JAX takes its leave: the last comes first


def _silence():
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def end(text):
    """Say `text` and end now, waiting for nobody."""
    if text:
        os.write(2, f"{text}\n".encode())
    os._exit(STATUS)


def is_loss(error):
    """Whether an exception of JAX says that another process cannot be reached."""
    text = str(error).lower()
    return any(sign in text for sign in SIGNS)
