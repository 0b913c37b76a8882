"""Mistakes end a command at once: one sentence, nothing compiled, nothing written.

The table is tests/errors.txt; sentences of commands that are tested in their own room
stand there. `python -m tests.test_errors` writes the sentences of today into it.
"""

import contextlib
import importlib
import json
import logging
import pathlib
import re
import shlex
import tempfile

import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem_type import PROBLEMS
from imagepiece_jax.models.spec import create_model
from imagepiece_jax.models.variables import fresh_variables, variable_shapes
from tests import runs
from tests.command import call, sentence, start
from tests.models import tiny
from tests.runs import ROOT

TABLE = ROOT / "tests" / "errors.txt"
TINY = {
    "model.depth": 2,
    "model.embed_dim": 64,
    "model.num_heads": 1,
    "reduction": "imagepiece:merge_blocks=(0,):prune_blocks=(1,)",
}
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"
WORDS = {
    "quickstart": [QUICKSTART],
    "tiny": [QUICKSTART, *(f"--config.{name}={value}" for name, value in TINY.items())],
    "named": ["--name=vit_mini", "--model=num_heads=1"],  # weights of "tiny"
}
BASE = "from configs import base\ndef get_config():\n    config = base.get_config()\n"
CONFIG_FILES = {
    "syntax": "x = 1\ndef get_config(:\n",
    "no_module": "\nimport no_such_module\n",
    "no_function": "x = 1\n",
    "returns_a_dict": "def get_config():\n    return {}\n",
    "returns_it_frozen": "from ml_collections import FrozenConfigDict\n"
    f"{BASE}    return FrozenConfigDict(config)\n",
    "divides": "def get_config():\n    return 1 / 0\n",
    "wants_an_argument": "def get_config(x):\n    return x\n",
    "wrong_field": f"{BASE}    config.bach_size = 3\n    return config\n",
    "wrong_group": f"{BASE}    config.reduction = 'tome'\n    return config\n",
    "wrong_type": f"{BASE}    config.batch_size = 'x'\n    return config\n",
}


def table():
    """(heading, command line, sentence) for each "$" of errors.txt."""
    rows = []
    heading = ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("$ "):
            rows.append([heading, line[2:], ""])
        elif line and not line.startswith("# "):
            rows[-1][2] = line
    return rows


def image_files(*names):
    for file in map(pathlib.Path, names):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(file)


def fill(folder):
    """Write what the command lines name: configs, weights, two runs, sets of images."""
    with contextlib.chdir(folder):
        pathlib.Path("configs").symlink_to(ROOT / "configs")
        pathlib.Path("mine").mkdir()
        for name, text in CONFIG_FILES.items():
            pathlib.Path(f"mine/{name}.py").write_text(text)
        model = RunConfig.from_config(runs.configured(TINY)).create_model()
        variables = variable_shapes(model, 16)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
        tiny.write("w.npz", zeros)
        weights = pathlib.Path("w.npz").read_bytes()
        pathlib.Path("half.npz").write_bytes(weights[: len(weights) // 2])
        two = {}
        with np.load("w.npz") as arrays:
            for name in arrays:
                two[f"student.{name}"] = arrays[name]
                two[f"teacher.{name}"] = arrays[name]
        np.savez("two.npz", **two)
        pathlib.Path("w.txt").touch()
        halves = {"model.mean": (0.5, 0.5, 0.5), "model.std": (0.5, 0.5, 0.5)}
        for name, fields in (("trained", halves), ("other", {"lr": 0.5})):
            pathlib.Path(name).mkdir()
            text = json.dumps(runs.configured(TINY, **fields).to_dict())
            pathlib.Path(name, "config.json").write_text(text)
            line = json.dumps({"kind": "train", "step": 1})
            pathlib.Path(name, "metrics.jsonl").write_text(line + "\n")
        image_files("0.png", "1.png", "uneven/train/a/1.png")
        image_files("uneven/train/b/1.png", "uneven/val/a/1.png")
        image_files(*(f"numbered/val/{number}/0.png" for number in range(1, 11)))
        image_files("train_only/train/a/1.png", "train_only/train/b/1.png")
        for name in ("no_images/train/a", "no_images/val/a", "no_classes/train"):
            pathlib.Path(name).mkdir(parents=True)
        for problem_type in PROBLEMS[1:]:
            dense = create_model("deit_ti", image_size=16, depth=1, num_classes=10)
            zeros = tiny.fill(variable_shapes(dense, 16))
            vit = Pretrained(dense, zeros, problem_type=problem_type)
            imagepiece_jax.save(problem_type, vit)
        Image.new("RGB", (60, 40)).save("large.png")
        pathlib.Path("damaged.png").write_bytes(b"nothing")
        pathlib.Path("large.csv").write_text("filename,label\nlarge.png,1\n")
        rows = ["filename,label", "0.png,0", "damaged.png,1", "1.png,2"]
        pathlib.Path("damaged.csv").write_text("\n".join(rows))
        for name in ("set.csv", "rows.json"):
            pathlib.Path(name).write_text("filename,label\n1.png,0\n")
        for name, row in (("label_2", "1.png,2"), ("no_file", "2.png,0")):
            text = f"filename,label,split\n{row},train\n"
            pathlib.Path(f"{name}.csv").write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run."""
    jax.clear_caches()  # what other files compiled would not be compiled again
    folder = tmp_path_factory.mktemp("errors")
    fill(folder)
    return folder


@pytest.fixture
def compiled():
    """Names of the programs that XLA compiles during a test."""
    names = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_compiled_model_would_be_seen(compiled):
    model = RunConfig.from_config(runs.configured(TINY)).create_model()
    fresh_variables(model, 16, seed=0)
    assert [name for name in compiled if "init" in name]


def files(folder):
    return sorted((str(f), f.stat().st_mtime_ns) for f in folder.rglob("*"))


def refused(line):
    """The sentence with which a command line ends."""
    command, *words = shlex.split(line)
    command = importlib.import_module(f"imagepiece_jax.commands.{command}")
    parts = []
    for word in words:
        parts += WORDS.get(word, [word])
    return sentence(call(command.main, *parts))


def fits(said, expected):
    """Whether a sentence is the expected one, or begins so where that ends in "..."."""
    beginning = expected.removesuffix("...")
    return said == expected or (beginning != expected and said.startswith(beginning))


def write_table():
    """Replace each sentence of errors.txt that does not fit, or add a missing one."""

    def row(match):
        line, expected = match.groups()
        said = refused(line).replace(folder, "{folder}")
        return f"$ {line}\n{expected if fits(said, expected or '') else said}\n"

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        fill(folder)
        rows = re.sub(r"(?m)^\$ (.*)\n(?:([^$#\n].*)\n)?", row, TABLE.read_text())
    TABLE.write_text(rows)


@pytest.mark.parametrize(
    "heading, line, expected", table(), ids=[line for _, line, _ in table()]
)
def test_sentence(folder, compiled, monkeypatch, heading, line, expected):
    monkeypatch.chdir(folder)
    before = files(folder)
    assert fits(refused(line).replace(str(folder), "{folder}"), expected)
    assert files(folder) == before
    if heading != "During evaluation":
        # Small programs that make a random key may run, those with a model may not.
        assert not [n for n in compiled if re.search("init|step|logits", n)]


def test_in_a_process_of_its_own(tmp_path):
    """Eight devices, nothing in this process's state, and the real exit status."""
    ended = start(
        *(ROOT / "train.py", QUICKSTART, "--config.batch_size=20"),
        cwd=tmp_path,
        imported=True,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert sentence(ended).endswith("devices * accumulation steps (8 * 1)")
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    importlib.import_module("tests.conftest")  # one device, as in tests
    logging.disable()
    write_table()
