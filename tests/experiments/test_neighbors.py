"""Neighbors of reduced encoders: by hand, and the figures of the pages."""

import itertools

import numpy as np
import pytest

from experiments import neighbors
from tests import markdown
from tests.experiments import lines

FOLDER = markdown.ROOT / neighbors.FOLDER


def test_neighbors_are_those_of_a_slow_search(monkeypatch):
    monkeypatch.setattr(neighbors, "NEIGHBORS", 3)
    rng = np.random.default_rng(0)
    found = rng.normal(size=(12, 5)).astype(np.float32)
    other = found + rng.normal(0, 0.5, found.shape).astype(np.float32)
    lists = []
    for vectors in (found, other):
        slow = []
        for row, query in enumerate(vectors):
            by_cosine = []
            for place, each in enumerate(vectors):
                lengths = np.linalg.norm(query) * np.linalg.norm(each)
                if place != row:
                    by_cosine.append((-(query @ each) / lengths, place))
            slow.append([place for _, place in sorted(by_cosine)[:3]])
        np.testing.assert_array_equal(neighbors.neighbors(vectors), slow)
        lists.append(slow)
    want = [len({*a} & {*b}) for a, b in zip(*lists, strict=True)]
    assert 0 < sum(want) < 36
    got = neighbors.shared(*map(np.array, lists))
    np.testing.assert_array_equal(got, want)


def committed(images, setting):
    """The kept neighbors of each image, by a line's own digits."""
    name = f"{images}.{setting.replace('=', '-')}"
    run = lines.committed(neighbors.FOLDER)[name]
    kept = [int(text) for text in run["shared"].split()]
    assert len(kept) == run["images"] == 500
    return np.array(kept)


def test_the_pages_have_the_figures_of_the_files():
    page = FOLDER / "README.md"
    assert page.read_text("utf-8") == neighbors.page(FOLDER)
    rows, paired = markdown.tables(page.read_text("utf-8"))
    (shown,) = markdown.tables(markdown.section("docs/search.md", "What a reduction"))
    assert shown == rows
    for row, images in itertools.product(rows, neighbors.SETS):
        kept = committed(images, row["typed"].strip("`"))
        half = 1.96 * 10 * kept.std(ddof=1) / np.sqrt(len(kept))
        value, low, high = markdown.interval(row[f"recall, %, {images}"])
        assert value == pytest.approx(10 * kept.mean(), abs=0.051)
        assert high - value == pytest.approx(half, abs=0.11)
        assert value - low == pytest.approx(half, abs=0.11)
    ahead = {}
    for row, pair in zip(paired, neighbors.PAIRS, strict=True):
        for images in neighbors.SETS:
            ours, theirs = (committed(images, setting) for setting in pair)
            value, *_ = markdown.interval(row[images])
            assert value == pytest.approx(10 * (ours - theirs).mean(), abs=0.051)
            ahead[images, pair] = f"{value:.1f}"
    assert not markdown.lacking(ahead, "docs/search.md")
