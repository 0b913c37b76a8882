"""Measurements at ImageNet's size, on a set of more files than descriptors."""

import json
import subprocess
import sys

import pytest

from imagepiece_jax.input.registry import open_source
from tests import command
from tests.runs import ROOT
from tools import imagenet_scale

FILES = 80
LIMIT = 64


def measure(*words):
    """What the tool prints, with at most `LIMIT` open files."""
    command = [sys.executable, "-m", "tools.imagenet_scale", "measure"]
    # By a shell: JAX warns of forks that run Python.
    command = ["sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh", *command]
    command += map(str, words)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    words = "write", folder, f"--train=200,{FILES}", "--val=6,2"
    ended = command.call(imagenet_scale.main, *words)
    assert ended.status == 0, ended
    return folder


def test_what_is_written_is_an_imagenet_that_decodes(folder):
    files = list(folder.glob("imagenet2012/*/*array_record*"))
    assert len(files) == FILES + 2
    for split, images in (("train", 200), ("val", 6)):
        source = open_source("imagenet2012", split, data_dir=str(folder))
        assert len({source.name(i) for i in range(images)}) == len(source) == images
        pixels, label = source.read(images - 1)
        assert pixels.shape == (18, 24, 3)
        assert pixels.std() > 10
        assert 0 <= label < 1000


def test_reading_processes_stay_below_a_limit_that_is_less_than_the_files(folder):
    """Two processes with two threads each, across several ends of an epoch."""
    out = measure(
        folder,
        "--part=growth,20",
        "--config=configs/base.py",
        "--config.image_size=32",
        "--config.data.workers=2",
    )
    result = json.loads(out.splitlines()[-1])
    assert len(result["samples"]) == 10
    for sample in result["samples"]:
        readers = sorted(one["fd"] for one in sample.values())[-2:]
        assert 10 < readers[0] <= readers[1] < LIMIT
    assert result["rate"] > 0


def figures(pss=150.0, first=3.0, fd=40):
    """What each part of a measurement could have returned."""
    before = {"7": {"pss": 200.0, "fd": 30, "task": 80}}
    before["8"] = {"pss": 150.0, "fd": 40, "task": 70}
    last = before | {"8": {"pss": pss, "fd": fd, "task": 70}}
    return {
        "start": {"open": 1.0, "first": first},
        "epoch_end": {"median": 0.5, "longest": 0.75},
        "rate": {"rate": 4321.0},
        "growth": {"samples": [before, last], "rate": 3210.0},
    }


@pytest.mark.parametrize(
    "changes, status, line",
    [
        ({}, 0, "| images/s, 4 readers |  | 4,321 | 4,321 |"),
        ({"first": 5.5}, 1, "| first batch from step 300,000, s | ≤ 5.0 | 5.5 | 5.5 |"),
        ({"pss": 153.1}, 1, "any process | ≤ 2.0% | 2.1% | 2.1% |"),
        ({"fd": 41}, 1, "| descriptors, largest reader |  | 41 | 41 |"),
    ],
)
def test_the_table_and_the_goals(changes, status, line, monkeypatch, tmp_path):
    found = figures(**changes)
    part = lambda limits: lambda name, *_: found[name]  # noqa: E731
    monkeypatch.setattr(imagenet_scale, "_Run", part)
    (tmp_path / "imagenet2012").mkdir()
    ended = command.call(imagenet_scale.main, "measure", tmp_path)
    assert (ended.status, ended.err) == (status, "")
    assert line in ended.out
    heads = "|  | goal | `ulimit -n` 1024:4096 | `ulimit -n` 256:256 |"
    assert heads in ended.out
    assert "| PSS, training process, MB | ≤ 1,000 | 200 | 200 |" in ended.out
