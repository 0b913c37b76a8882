"""Accuracy, speed and nearest neighbors with a fixed number of tokens."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import fixed_tokens
from imagepiece_jax.pretrained import convert
from tests.command import call, sentence
from tests.models import tiny


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    model = tiny.model(embed_dim=64, num_heads=4, depth=1)
    np.savez(folder / "vit_mini.npz", **convert.to_timm(tiny.variables(model)))
    rng = np.random.default_rng(0)
    for split, name, place in np.ndindex(2, 2, 12):
        side = tiny.SIDE
        pixels = rng.integers(0, 56, (side, side, 3)) + 200 * np.uint8(name)
        file = folder / ("train", "val")[split] / str(name) / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    data = f"folder:{folder}"
    return ["--weights", folder / "vit_mini.npz", "--data", data, "--resize", "none"]


def test_the_table_has_every_number_of_tokens(tmp_path, words):
    """Dark and bright images: their neighbors are of their class, whatever is left."""
    more = ["--neighbors", words[3], "--memory", 20, "--queries", 6, "--at_once", 4]
    timing = ["--warmup", 2, "--repeats", 1, "--seconds", 0.0]
    ended = call(
        fixed_tokens.main,
        *(*words, *more, *timing, "--out", tmp_path, "--images", 6),
        *("--sweep", "tome:r=2", "--counts", "20,15"),
    )
    assert ended.status == 0, ended
    rows = json.loads((tmp_path / "fixed_tokens.json").read_text())
    assert [row["tokens"] for row in rows] == [25, 20, 15]
    assert rows[0]["gmacs"] > rows[1]["gmacs"] > rows[2]["gmacs"]
    assert rows[0]["ratio"] == [1, 1, 1] and rows[0]["points"][0] == 0
    assert all(row["neighbors"][0] == 100 for row in rows)
    assert "| tome r=2 | 15 |" in (tmp_path / "fixed_tokens.md").read_text()


def test_neighbors_vote_by_hand():
    """Of 20, 9 of class 1 at the query and 11 of class 0 at 60 degrees: class 1."""
    memory = np.array([[1.0, 0]] * 9 + [[0.5, 0.75**0.5]] * 11)
    labels = np.array([1] * 9 + [0] * 11)
    found = fixed_tokens.nearest_classes(memory, labels, np.array([[3.0, 0], [0, 2]]))
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "--sweep is missing: name methods"),
        (["--sweep", "tome", "--counts", "a"], "--counts is 'a'; allowed is a list"),
        (
            ["--sweep", "tome:r=2", "--counts", "26"],
            "tokens is 26; allowed are 1 to 25",
        ),
    ],
)
def test_what_does_not_fit_is_refused(words, more, message):
    assert message in sentence(call(fixed_tokens.main, *words, *more))
