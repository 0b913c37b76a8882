import importlib
import re

import pytest

import imagepiece_jax
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.run_command import call, sentence, start
from tests.helpers.tiny_benchmark import SMALL, simplify

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
