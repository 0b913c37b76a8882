"""How a command ends, what it warns of, and the programs that it keeps."""

import os
import subprocess
import sys

import pytest

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError, RunError, Stopped
from tests.command import call, start
from tests.runs import ROOT


@pytest.mark.parametrize(
    "error, status, said",
    [
        (InputError("lr is -1"), 2, "error: lr is -1"),
        (RunError("loss is nan"), 1, "error: loss is nan"),
        (MemoryError("5 TiB"), 1, "error: 5 TiB"),
        (
            FileNotFoundError(2, "No such file", "a"),
            1,
            "error: [Errno 2] No such file: 'a'",
        ),
        # To be stopped is no error.
        (Stopped(15, 7), 143, "stopped at step 7; the same command resumes from there"),
    ],
)
def test_status_and_sentence_of_an_end(error, status, said):
    def main():
        raise error

    ended = call(main)
    assert (ended.status, ended.err) == (status, f"{said}\n")
    assert call(lambda: 7).status == 7


def test_a_fault_of_the_code_is_a_traceback():
    def main():
        raise TypeError("a fault")

    with pytest.raises(TypeError):
        call(main)


KEEPS = """
from imagepiece_jax import cli

def main():
    import jax
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    print(jax.jit(lambda x: 3 * x + 1)(2.0))

cli.run(main)
"""


def test_programs_are_kept(tmp_path):
    script = tmp_path / "keeps.py"
    home = tmp_path / "cache"
    script.write_text(KEEPS)
    variables = {name: os.environ[name] for name in os.environ if "JAX" not in name}
    variables |= {"PYTHONPATH": os.getcwd(), "XDG_CACHE_HOME": str(home)}
    variables["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, script]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "7.0\n")
    (folder,) = (home / "imagepiece_jax" / "programs").iterdir()
    assert f"kept in {folder} (set JAX_" in ended.stderr
    assert [*folder.glob("*-cache")]


@pytest.mark.parametrize(
    "variables",
    [
        {"XDG_CACHE_HOME": "/proc/none", "HOME": "/proc/none"},
        {"XDG_CACHE_HOME": "not/absolute", "HOME": "/proc/none"},
        {"JAX_COMPILATION_CACHE_DIR": ""},
    ],
)
def test_where_nothing_can_be_kept_nothing_is_said(variables, monkeypatch, capsys):
    for name in [name for name in os.environ if "JAX" in name]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    cli.keep_programs()
    assert capsys.readouterr() == ("", "")
    assert not os.environ.get("JAX_COMPILATION_CACHE_DIR")


TWICE = """
import warnings
from imagepiece_jax import cli

def main():
    for _ in range(2):
        with warnings.catch_warnings():  # Python forgets what it has shown
            pass
        warnings.warn("of this")

cli.run(main, compiles=False)
"""


def test_a_command_warns_once_of_one_thing():
    ended = start("-c", TWICE, PYTHONWARNINGS="").ok()
    assert ended.err == "warning: of this\n"


FULL = """
from imagepiece_jax import cli
cli.run(lambda: print("x" * 10_000), compiles=False)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_output_to_a_full_disk_is_one_sentence():
    command = [sys.executable, "-c", FULL]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    said = "error: [Errno 28] No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, said)


CRASHES = """
import atexit, os, signal, sys
from imagepiece_jax import cli, errors

class Crash:  # what threads of libraries have done when the interpreter goes
    def __del__(self, kill=os.kill, pid=os.getpid(), signum=signal.SIGSEGV):
        kill(pid, signum)

crash = sys.crash = Crash()
atexit.register(print, "done at exit")

def main():
    print("\\udce9 \\xb1")  # nor can an ASCII terminal show it
    raise errors.Stopped(15, 3)

cli.run(main)
"""


def test_a_crash_in_the_end_of_python_does_not_change_the_status(tmp_path):
    script = tmp_path / "crashes.py"
    script.write_text(CRASHES)
    ended = start(script, PYTHONPATH=os.getcwd(), PYTHONIOENCODING="ascii")
    assert (ended.status, ended.out) == (143, "\\udce9 \\xb1\ndone at exit\n")
    assert ended.err.startswith("stopped at")
    assert ended.err.count("\n") == 1
