"""The table of feature maps: every method, every way to fill, and the bounds."""

import json

import numpy as np
import pytest

from experiments import __main__ as experiments
from experiments.dense_maps import patch_features
from experiments.dense_maps.maps import FILLED, correlation, of_other_images
from tests import markdown
from tests.command import call
from tests.models import tiny
from tests.pictures import write_csv


@pytest.mark.slow
def test_page_has_every_way_to_fill_and_resumes(tmp_path):
    """Of images of other classes than those of the weights."""
    model = tiny.model(embed_dim=64, num_heads=4, depth=1)
    file = tiny.write(tmp_path / "vit_mini.npz", tiny.variables(model))
    shape = (4, tiny.SIDE, tiny.SIDE, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = write_csv(tmp_path, pixels, range(tiny.CLASSES, tiny.CLASSES + 4))
    words = ["--weights", file, "--data", data, "--out", tmp_path, "--resize=none"]
    words += ["--sweep", "tome:r=1"]
    first = call(experiments.main, "patch_features", *words)
    lines = (tmp_path / "points.jsonl").read_text()
    ended = call(experiments.main, "patch_features", *words, "--sweep=evit:blocks=(0,)")
    assert first.status == ended.status == 0, ended
    every = (tmp_path / "points.jsonl").read_text()
    assert every.startswith(lines) and every.count("\n") == 1 + lines.count("\n") == 3
    results = [json.loads(line)["result"] for line in every.splitlines()]
    rows = [row for result in results for row in result["rows"]]
    assert [(row["setting"], row.get("fill")) for row in rows] == [
        ("dense", None),
        ("position alone", None),
        ("tome r=1", None),
        *(("evit blocks=(0,)", fill) for fill in ("nearest", "last", "zero", "class")),
    ]
    assert [row.get("tokens") for row in rows] == [25, None, 24, 18, 18, 18, 18]
    assert rows[0]["self_similarity"] == pytest.approx([1, 1, 1], abs=1e-6)
    assert all(-1 <= row["self_similarity"][0] < 0.9999 for row in rows[1:])
    tome, nearest, last, zero, _ = rows[2:]
    assert set(tome["cosine"]) == {"alone", "merged"}
    assert set(last["cosine"]) == {"alone", "dropped"}
    assert last["cosine"]["alone"] == zero["cosine"]["alone"] > 0.5
    assert nearest["cosine"]["alone"] == last["cosine"]["alone"]
    assert nearest["cosine"]["dropped"] > 0
    for row in rows[2:]:
        mean, low, high = row["agreement"]
        assert min(row["cosine"].values()) <= mean <= max(row["cosine"].values())
        assert low <= mean <= high
    assert last["cosine"]["dropped"] > zero["cosine"]["dropped"] == 0
    page = (tmp_path / "patch_features.md").read_text()
    assert "`vit_mini.npz` on 4 images of csv:" in page and page in ended.out
    assert page.count("\n| ") == 1 + 1 + 7
    assert "| evit blocks=(0,) | zero | 18 |" in page


# The figures, against small maps worked out by hand


def test_cosines_of_all_pairs():
    """At 0, 45, 90 degrees, and nothing at all; lengths do not count."""
    features = np.array([[[1, 0], [3, 3], [0, 2], [0, 0]]])
    half = 0.5**0.5
    expected = [[half, 0, 0, half, 0, 0]]  # pairs 01 02 03 12 13 23
    found = patch_features.self_similarity(features)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_correlation_is_that_of_numpy_whatever_the_scale():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 3, 20))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(correlation(ours, theirs), expected)
    np.testing.assert_allclose(correlation(ours, 2 * ours + 1), 1)
    assert correlation(ours, np.ones_like(ours)).tolist() == [0, 0, 0]


def test_other_images_are_all_but_this_one():
    pairs = np.array([[1.0, 0], [2, 6], [6, 3]])
    assert of_other_images(pairs).tolist() == [[4, 4.5], [3.5, 1.5], [1.5, 3]]


@pytest.fixture(scope="module")
def two_kinds():
    """Patches that point up or right: (map, labels, memory) of three images."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (3, 40))
    features = np.eye(2)[labels] + rng.normal(0, 0.05, (3, 40, 2))
    return features, labels, np.array([True, False, True])


def test_probe_reads_labels_from_features(two_kinds):
    features, labels, memory = two_kinds
    assert patch_features.probe(features, labels, memory).tolist() == [1.0]
    turned = features.copy()
    turned[1, :10] = turned[1, :10, ::-1]  # a quarter of the patches are wrong
    assert patch_features.probe(turned, labels, memory).tolist() == [0.75]
    turned[1] = features[1, :, ::-1]  # all are, and what is tested is not the memory
    assert patch_features.probe(turned, labels, memory).tolist() == [0.0]


def test_probe_of_position_takes_the_most_frequent_label():
    labels = np.array([[0, 1, 2], [0, 1, 1], [0, 2, 1], [1, 2, 1]])
    memory = np.array([True, True, True, False])
    # 0 is most frequent at the first place, 1 at the other two.
    assert patch_features.probe_position(labels, memory).tolist() == [1 / 3]


def test_clusters_are_of_the_images_in_memory(two_kinds, monkeypatch):
    """The two kinds of patches of the other image are both nearer to one of theirs."""
    features, labels, memory = two_kinds
    monkeypatch.setattr(patch_features, "CLUSTERS", 2)
    features = features.copy()
    features[1] = np.where(labels[1, :, None], (0.1, 1), (0.7, 1))
    found = patch_features.cluster_labels(features, memory)
    expected = np.where(memory[:, None], labels, 1)
    same = found == expected
    assert same.all() or not same.any()  # clusters have no names


def test_cosine_of_two_maps():
    ours = np.array([[[2, 0], [1, 1], [0, 0]]])
    theirs = np.array([[[5, 0], [0, 1], [1, 0]]])
    found = patch_features.cosine(ours, theirs)
    np.testing.assert_allclose(found, [[1, 0.5**0.5, 0]], rtol=1e-6)


def test_figures_of_scores_are_those_of_the_table():
    """docs/tables/scores.md, beside the rows of DINOv2-S in patch_features.md."""
    text = markdown.section("docs/tables/patch_features.md", "DINOv2-S")
    measured = {
        row["setting"]: row["cosine"]
        for row in markdown.tables(text)[0]
        if row["dropped patches get"] == FILLED["nearest"]
    }
    for row in markdown.tables(markdown.section("docs/tables/scores.md"))[0]:
        score = "" if row["score"] == "class" else f" score={row['score']}"
        for name, title in (("evit", "EViT"), ("imagepiece", "ImagePiece")):
            assert row[f"{title}, DINOv2-S: cosine"] == measured[name + score]
