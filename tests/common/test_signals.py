"""A signal ends a command anywhere, in one line, with nothing half-written."""

import itertools
import signal

import pytest

from tests.helpers.run_command import start

ENDED = {
    signal.SIGINT: (130, "interrupted\n"),
    signal.SIGTERM: (143, "terminated\n"),
    signal.SIGHUP: (129, "hung up\n"),
    signal.SIGUSR1: (138, "ended by SIGUSR1\n"),
}

# The beginning of a command's process; `send()` sends the signal to itself.
BEGIN = """
import os, pathlib, signal, sys, threading, time
from imagepiece_jax.common import files, signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
signum = int(sys.argv[1])
folder = pathlib.Path(sys.argv[2])
send = lambda *_: os.kill(os.getpid(), signum)
"""
# Python ignores exceptions in most of these places.
PLACES = {
    "a callback of C code": """
import ctypes
ctypes.CFUNCTYPE(None)(send)()
time.sleep(20)
""",
    "a conversion, whose error numpy words anew": """
import numpy as np
class Number:
    def __float__(self):
        send()
np.array(1.0)[()] = Number()
time.sleep(20)
""",
    "the end of the interpreter": """
import atexit
atexit.register(time.sleep, 20)
atexit.register(send)
""",
    "output that nobody reads": """
reader, writer = os.pipe()
os.close(reader)
sys.stdout = open(writer, "w")
print("a line")  # into its buffer
send()
""",
    "an unfinished file": """
with files.replacement_file(folder / "file") as new:
    new.write_text("half")
    send()
""",
    "an unfinished folder": """
with files.replacement_folder(folder / "folder") as new:
    (new / "file").write_text("half")
    send()
""",
    "a temporary folder, in which a library makes another": """
import tempfile
tempfile.tempdir = str(folder)
with files.temporary_folder() as new:
    pathlib.Path(new, "file").write_text("half")
    with tempfile.NamedTemporaryFile():
        send()
""",
}


CASES = [*zip(PLACES, itertools.cycle(ENDED))]


@pytest.mark.parametrize("place, signum", CASES)
def test_a_signal_ends_a_process(place, signum, tmp_path):
    code = f"{BEGIN}\nsignals.handle_ending_signals()\n{PLACES[place]}"
    ended = start("-c", code, int(signum), tmp_path)
    assert (ended.status, ended.err) == ENDED[signum]
    assert not [*tmp_path.iterdir()]


FINISHED = """
signals.handle_ending_signals()
files._exchange_folders = lambda *folders: False  # where the system cannot
for text in ("old", "new"):
    if text == "new":
        rename = os.rename
        os.rename = lambda *paths: (rename(*paths), send(), send())
    with files.replacement_folder(folder / "folder") as new:
        (new / "file").write_text(text)
print("not ended")
"""


REFUSED = """
signals.handle_ending_signals()
with signals.deferred_signals():
    send()
    (folder / "file").touch()
    raise OSError("Input/output error")
"""


def test_an_error_does_not_hide_the_signal_that_caused_it(tmp_path):
    """A lost terminal sends SIGHUP, and then refuses prints."""
    ended = start("-c", BEGIN + REFUSED, int(signal.SIGHUP), tmp_path)
    assert (ended.status, ended.err) == ENDED[signal.SIGHUP]
    assert (tmp_path / "file").exists()


def test_between_two_renames_a_signal_waits(tmp_path):
    ended = start("-c", BEGIN + FINISHED, int(signal.SIGINT), tmp_path)
    assert (ended.status, ended.err) == ENDED[signal.SIGINT]
    assert not ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "new"


IGNORED = """
signal.signal(signum, signal.SIG_IGN)
signals.handle_ending_signals()
send()
print("goes on")
"""


@pytest.mark.parametrize("signum", ENDED)
def test_an_ignored_signal_stays_ignored(signum, tmp_path):
    ended = start("-c", BEGIN + IGNORED, int(signum), tmp_path).quiet()
    assert ended.out == "goes on\n"


OF_PYTHON = """
with signals.stoppable_work(defers=True) as stop:
    send()
    send()
    stop.defers = False
    try:
        send()
    except KeyboardInterrupt:
        print(stop.signums)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
with signals.deferred_signals():
    pass
"""


def test_outside_commands_ctrl_c_is_pythons(tmp_path):
    ended = start("-c", BEGIN + OF_PYTHON, int(signal.SIGINT), tmp_path).quiet()
    assert ended.out == "[2, 2, 2]\n"


BLOCKED = """
import subprocess
signals.handle_ending_signals()
with signals.blocked_signals(*signals.END_SIGNALS):
    child = subprocess.Popen([sys.executable, "-c", "print(input())"], stdin=-1)
os.kill(child.pid, signal.SIGINT)
os.kill(child.pid, signal.SIGTERM)
child.communicate(b"still there\\n")
send()
time.sleep(20)
"""


def test_a_child_begun_with_blocked_signals_receives_none(tmp_path):
    """Its Python may not have started yet. The parent receives signals again."""
    ended = start("-c", BEGIN + BLOCKED, int(signal.SIGINT), tmp_path)
    assert (ended.status, ended.out) == (130, "still there\n")
