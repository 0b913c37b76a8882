"""A cost, in every command that has --weights: what it says, does and stores."""

import importlib
import json
import re

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands import benchmark, compare, describe
from tests.benchmark.small import SMALL, simplify
from tests.command import call
from tests.models import tiny
from tests.pictures import write_csv

# By the cost that is nearest to .7: the tiny model of 25 patches and two blocks.
SAID = re.compile(r"(?m)^attended in every block; counts (\d+), (\d+); .* of the MACs$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model, 48 photographs of noise, and labels for them."""
    folder = tmp_path_factory.mktemp("macs")
    imagepiece_jax.save(folder / "vit", tiny.pretrained(depth=2))
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (48, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    (folder / "photos").mkdir()
    write_csv(folder, pixels, draw.integers(0, tiny.CLASSES, 48), "photos/")
    return folder


def words(folder, name):
    """What a command takes beside --weights and --macs."""
    data = f"--data=csv:{folder}/set.csv"
    out = f"{folder}/{name}"
    of_images = [data, "--resize=none"]
    return {
        "benchmark": [*SMALL, f"--json={out}.json"],
        "compare": [*of_images, f"--out={out}"],
        "describe": [],
        "evaluate": [*of_images, f"--json={out}.json"],
        "export": [f"--out={out}.onnx"],
        "predict": [f"{folder}/photos/0.png", f"--json={out}.json"],
        "recover": [f"--data={folder}/photos", f"--out={out}", "--steps=1"],
        "visualize": [f"{folder}/photos/0.png", f"--out={out}"],
    }[name]


@pytest.mark.parametrize(
    "name",
    "benchmark compare describe evaluate export predict recover visualize".split(),
)
def test_it_says_once_what_it_takes_and_stores_it_by_name(folder, name, monkeypatch):
    if name == "benchmark":
        simplify(monkeypatch)
    command = importlib.import_module(f"imagepiece_jax.commands.{name}")
    typed = ["--weights", folder / "vit", "--macs=.7", *words(folder, name)]
    ended = call(command.main, *typed).ok()
    (counts,) = SAID.findall(ended.err)
    left = [layer.mlp_tokens - 1 for layer in tiny.model(0.7, depth=2).plan]
    assert left == [*map(int, counts)]
    written = [*folder.glob(f"{name}*.json"), *folder.glob(f"{name}*/*.json")]
    texts = [file.read_text() for file in written]
    asked = re.compile('"name": "auto"|auto macs')  # a score may be "auto", too
    assert [*filter(asked.search, [ended.out, *texts])] == []
    if name in ("compare", "evaluate", "recover", "export"):
        assert any("attended" in text for text in texts), texts
    if name == "describe":
        rows = re.findall(r"block \d +(\d+) +(\d+) .*PruneAndMerge", ended.out)
        assert [int(mlp) - 1 for _, mlp in rows] == left
    if name == "compare":
        report = json.loads((folder / "compare" / "compare.json").read_text())
        assert [line["method"] for line in report["settings"]] == [
            "attended macs=0.7 blocks=(0, 1)"
        ]
        assert report["trained_as"] == "none"


def cost(text):
    """The share of the dense MACs, as `describe` has it."""
    found = re.search(r"([\d.]+) GMACs an image; dense ([\d.]+)", text)
    return float(found[1]) / float(found[2])


@pytest.mark.parametrize(
    "words, reducer",
    [
        (["--reduction=tome=.7"], "Bipartite"),
        (["--reduction", "tome macs=.7"], "Bipartite"),
        (["--method=tome=70%"], "Bipartite"),
        (["--reduction=70%"], "PruneAndMerge"),
        (["--macs", ".7"], "PruneAndMerge"),
    ],
)
def test_a_named_method_gets_it_and_else_the_recommended_one(folder, words, reducer):
    described = call(describe.main, "--weights", folder / "vit", *words).ok().out
    assert {*re.findall(r"(\w+): \d+ - \d+", described)} == {reducer}
    assert abs(cost(described) - 0.7) < 0.02


def test_the_method_of_a_config_gets_it():
    words = ["--config=configs/deit_s_tome.py:deit_ti", "--config.model.depth=4"]
    words.append("--macs=.7")
    described = call(describe.main, *words).ok().out
    assert {*re.findall(r"(\w+): \d+ - \d+", described)} == {"Bipartite"}
    assert abs(cost(described) - 0.7) < 0.02


def test_beside_sweep_it_is_the_cost_of_each_reduction(folder, monkeypatch):
    simplify(monkeypatch)
    file = folder / "swept.json"
    words = ["--weights", folder / "vit", *SMALL, f"--json={file}", "--macs=.7"]
    ended = call(benchmark.main, *words, "--sweep=auto", "--sweep=tome").ok()
    assert len(SAID.findall(ended.err)) == 1  # nor are the weights themselves reduced
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["config"] for row in rows] == [
        "dense",
        "attended macs=0.7 blocks=(0,1)",
        "tome macs=0.7",
    ]
    dense, *reduced = [row["gmacs"] for row in rows]
    assert all(abs(gmacs / dense - 0.7) < 0.02 for gmacs in reduced)


@pytest.mark.parametrize(
    "typed, compared",
    [
        (["--reduction=tome:r=2"], "tome r=2"),
        (["--reduction=.7"], "attended macs=0.7 blocks=(0, 1)"),
    ],
)
def test_a_typed_reduction_is_what_is_compared(folder, typed, compared):
    """Not every method at every cost."""
    command = ["--weights", folder / "vit", *words(folder, "compare"), "--limit=8"]
    call(compare.main, *command, *typed).ok()
    report = json.loads((folder / "compare" / "compare.json").read_text())
    assert [row["method"] for row in report["settings"]] == [compared]
    assert report["trained_as"] == "none"
