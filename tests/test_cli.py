import importlib
import re
import subprocess
import sys

import pytest

import imagepiece_jax
from imagepiece_jax.errors import InputError, RunError, Stopped
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.run_command import call, sentence, start
from tests.helpers.small_runs import ROOT
from tests.helpers.tiny_benchmark import SMALL, simplify


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


# The commands

COMMANDS = ["benchmark", "compare", "describe", "doctor", "evaluate", "export"]
COMMANDS += ["features", "predict", "recover", "visualize"]


def test_no_command_lists_all_commands():
    _, *lines = start("-m", "imagepiece_jax").quiet().out.splitlines()
    assert [line.split()[0] for line in lines] == COMMANDS


def test_an_unknown_command_is_one_sentence():
    ended = start("-m", "imagepiece_jax", "evalute", "--zebra", imported=True)
    message = f"'evalute' is not a command; the commands are {', '.join(COMMANDS)}"
    assert sentence(ended) == message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_flag_imports_no_jax(command):
    words = ["-m", "imagepiece_jax", command, "--zebra", "3"]
    ended = start("-X", "importtime", *words)
    assert ended.status == 2
    modules = {line.rpartition("|")[2].strip() for line in ended.err.splitlines()}
    assert "tyro" in modules and not {"jax", "flax", "ml_collections"} & modules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    vit = tiny_vit.pretrained(num_classes=10, image_size=16, depth=2)
    imagepiece_jax.save(vit, folder / "weights")
    write_images(folder / "photos", noise(3, 16, 16))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    main = importlib.import_module(f"imagepiece_jax.commands.{name}").main
    (line,) = re.findall(rf"Example: imagepiece {name}(.*)", main.__doc__)
    words = line.split()
    if name == "benchmark":
        simplify(monkeypatch)
        words += SMALL
    call(main, *words).ok()
