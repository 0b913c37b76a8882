"""Accuracy, speed and nearest neighbors with a fixed number of tokens."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import __main__ as experiments
from experiments.dense_maps import fixed_tokens
from tests import markdown
from tests.command import call
from tests.experiments.test_dense_maps import random_head
from tests.models import tiny


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    model = tiny.model(embed_dim=64, num_heads=4, depth=1, num_classes=2)
    tiny.write(folder / "vit_mini.npz", tiny.variables(model))
    rng = np.random.default_rng(0)
    for split, name, place in np.ndindex(2, 2, 12):
        side = tiny.SIDE
        pixels = rng.integers(0, 56, (side, side, 3)) + 200 * np.uint8(name)
        file = folder / ("train", "val")[split] / str(name) / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    data = f"folder:{folder}"
    return ["--weights", folder / "vit_mini.npz", "--data", data, "--resize", "none"]


@pytest.mark.slow
def test_the_page_has_every_number_of_tokens(tmp_path, words):
    """Dark and bright images: their neighbors are of their class, whatever is left."""
    np.savez(tmp_path / "head.npz", **random_head(64))
    more = ["--neighbors", words[3], "--memory", 20, "--queries", 6]
    more += ["--decoder", tmp_path / "head.npz", "--limit", 6, "--out", tmp_path]
    more += ["--warmup", 2, "--repeats", 1, "--seconds", 0.0, "--speed_batch_size", 2]
    words = ["fixed_tokens", *words, *more, "--sweep", "tome:r=2"]
    first = call(experiments.main, *words, "--counts", "20")
    lines = (tmp_path / "points.jsonl").read_text()
    ended = call(experiments.main, *words, "--counts", "20,15")
    assert first.status == ended.status == 0, ended
    every = (tmp_path / "points.jsonl").read_text()
    assert every.startswith(lines)
    settings = [json.loads(line)["setting"] for line in every.splitlines()]
    kinds = ("accuracy", "saliency", "speed", "neighbors")
    expected = [(kind, tokens) for tokens in (25, 20, 15) for kind in kinds]
    assert [(each["kind"], each["tokens"]) for each in settings] == expected
    results = [json.loads(line)["result"] for line in every.splitlines()]
    dense, *reduced = results[::4]
    assert dense["gmacs"] > reduced[0]["gmacs"] > reduced[1]["gmacs"]
    assert results[1]["correlation"] == pytest.approx([1] * 6)
    assert max(results[5]["correlation"]) < 1
    page = (tmp_path / "fixed_tokens.md").read_text()
    (rows,) = markdown.tables(page)
    assert [row["tokens"] for row in rows] == ["25", "20", "15"]
    assert all(row["neighbors, %"].startswith("100.0 [") for row in rows)
    assert rows[0]["to dense, points"].startswith("+0.0 [")
    assert rows[0]["correlation"] == "1.000 [1.000, 1.000]"


def test_neighbors_vote_by_hand():
    """Nine of class 1 at the query and eleven of class 0 at 60 degrees: class 1."""
    memory = np.array([[1.0, 0]] * 9 + [[0.5, 0.75**0.5]] * 11)
    labels = np.array([1] * 9 + [0] * 11)
    found = fixed_tokens.nearest_classes(memory, labels, np.array([[3.0, 0], [0, 2]]))
    assert found.tolist() == [1, 0]
