"""Benchmark of the input: what it makes, counts and prints; not how fast it is."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from tests.command import call, sentence
from tools import input_speed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """csv:FILE of five pictures, one of them torn, one a PNG."""
    folder = tmp_path_factory.mktemp("pictures")
    waves = np.sin(np.arange(90) / 7)[:, None] * np.sin(np.arange(120) / 9)
    lines = ["filename,label"]
    for index in range(5):
        gray = np.uint8(128 + 25 * index * waves)
        name = f"{index}.png" if index == 3 else f"{index}.jpg"
        Image.fromarray(gray).convert("RGB").save(folder / name)
        lines.append(f"{name},{index}")
    (folder / "2.jpg").write_bytes((folder / "1.jpg").read_bytes()[:500])
    (folder / "labels.csv").write_text("\n".join(lines))
    return f"csv:{folder}/labels.csv"


SHORT = ["--rounds=2", "--side=32", "--subset=9", "--copies=2"]


def test_every_pipeline_is_timed_on_both_kinds_of_files(data, tmp_path):
    out = tmp_path / "out.json"
    ended = call(input_speed.main, "--data", data, *SHORT, f"--json={out}")
    assert (ended.status, ended.err) == (0, "")
    rows = json.loads(out.read_text())
    names = list(input_speed.pipelines(32, 2))
    assert [(row["files"], row["way"]) for row in rows] == [
        (files, name)
        for files, name in itertools.product(("as they are", "short side 256"), names)
    ]
    for row in rows:
        assert 0 < row["lowest"] <= row["median"] <= row["highest"]
        assert row["way"] in ended.out
    base = {r["files"]: r["ratio"] for r in rows if r["way"] == input_speed.BASE}
    assert base["as they are"] == 1
    assert "4 of" in ended.out  # the torn one is left out


def test_images_made_at_once_count_as_several(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(input_speed.time, "thread_time", lambda: next(clock))
    compared = {
        "one": (lambda path, rng: None, 1),
        "three": (lambda path, rng: None, 3),
    }
    rates = input_speed.rates({"files": ["a", "b"]}, compared, rounds=2)
    assert rates == {"files": {"one": [2, 2], "three": [6, 6]}}  # one second each


def test_pipelines_make_images_of_the_sizes_they_say(data):
    path = data.removeprefix("csv:").replace("labels.csv", "4.jpg")
    rng = np.random.default_rng(0)
    results = {
        way: make(path, rng) for way, (make, _) in input_speed.pipelines(32, 3).items()
    }
    assert results[input_speed.BASE].shape == results["Pillow: decode, crop"].shape
    assert results["ours: decode, crop, flip"][0].shape == (32, 32, 3)
    assert [image.shape for image in results["ours: decode; crop, flip 3 times"]] == [
        (32, 32, 3)
    ] * 3
    np.testing.assert_array_equal(results["ours: decode"], results["Pillow: decode"])


def test_images_that_cannot_be_read(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.jpg").write_bytes(b"torn")
    message = sentence(call(input_speed.main, f"--data=folder:{tmp_path}"))
    assert message.startswith("--data has 1 images, none")
