import subprocess
import sys

import pytest

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
        (KeyboardInterrupt(), 130, "interrupted"),
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


@pytest.mark.parametrize("words", ["", "doctor --help"])
def test_a_full_disk_is_one_sentence(words):
    line = f"{sys.executable} -m imagepiece_jax {words} >/dev/full"
    ended = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


WARNS = """
import warnings
from imagepiece_jax import cli
cli.run_command(lambda: warnings.warn("of this"))
"""


def test_a_warning_is_one_line():
    assert start("-c", WARNS, PYTHONWARNINGS="").ok().err == "warning: of this\n"
