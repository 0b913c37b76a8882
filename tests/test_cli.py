"""Commands: exit status, warnings, and kept programs."""

import os
import subprocess
import sys

import pytest

from imagepiece_jax import cli
from imagepiece_jax.errors import InputError, RunError, Stopped
from tests.helpers.run_command import call, start
from tests.helpers.small_runs import ROOT


@pytest.mark.parametrize(
    "error, status, message",
    [
        (InputError("lr is -1"), 2, "error: lr is -1"),
        (RunError("loss is nan"), 1, "error: loss is nan"),
        (MemoryError("5 TiB"), 1, "error: 5 TiB"),
        (FileNotFoundError(2, "No such file", "a"), 2, "error: No such file: 'a'"),
        # A stop is no error.
        (Stopped(15, 7), 143, "stopped at step 7; the same command resumes from there"),
    ],
)
def test_errors_end_with_status_and_sentence(error, status, message):
    def main():
        raise error

    ended = call(main)
    assert (ended.status, ended.err) == (status, f"{message}\n")
    assert call(lambda: 7).status == 7


def test_code_faults_have_a_traceback():
    def main():
        raise TypeError("a fault")

    with pytest.raises(TypeError):
        call(main)


STREAMS = [">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full"]


@pytest.mark.parametrize("streams", STREAMS)
def test_commands_survive_closed_streams(streams, tmp_path):
    """Printed text enters no file opened meanwhile."""
    script = tmp_path / "writes.py"
    script.write_text(WRITES)
    line = f"{sys.executable} {script} {tmp_path}/file {streams}"
    ended = subprocess.run(line, shell=True, cwd=ROOT, timeout=60, env=ON_PATH)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


WRITES = """
import os, subprocess, sys
from imagepiece_jax import cli
from imagepiece_jax.common.progress import ProgressBar

def main(path: str, /):
    with open(path, "w") as file:
        print("a line", flush=True)
        if not os.path.samefile("/dev/full", "/proc/self/fd/2"):
            ProgressBar("work", 2).log_line("a note")
        subprocess.run([sys.executable, "-c", "import os; os.write(2, b'of C')"])
        file.write("whole")

cli.run_command(main, keeps_programs=False)
"""
ON_PATH = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("words", ["", "doctor --help"])
def test_a_full_disk_is_one_sentence(words):
    line = f"{sys.executable} -m imagepiece_jax {words} >/dev/full"
    ended = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


KEEPS = """
from imagepiece_jax import cli

def main():
    import jax
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    print(jax.jit(lambda x: 3 * x + 1)(2.0))

cli.run_command(main)
"""


def test_programs_are_kept(tmp_path):
    script = tmp_path / "keeps.py"
    home = tmp_path / "cache"
    script.write_text(KEEPS)
    variables = {name: os.environ[name] for name in os.environ if "JAX" not in name}
    variables |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home)}
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
        {"XDG_CACHE_HOME": "not/absolute", "HOME": "/proc/none"},
        {"JAX_COMPILATION_CACHE_DIR": ""},
    ],
)
def test_unusable_caches_print_nothing(variables, monkeypatch, capsys):
    for name in [name for name in os.environ if "JAX" in name]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    cli.use_program_cache()
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

cli.run_command(main, keeps_programs=False)
"""


def test_repeated_warnings_print_once():
    assert start("-c", TWICE, PYTHONWARNINGS="").ok().err == "warning: of this\n"
