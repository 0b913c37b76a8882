"""Neighbors of reduced encoders: by hand, and the figures of the pages."""

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


def test_the_page_is_made_from_the_lines():
    page = (FOLDER / "README.md").read_text("utf-8")
    assert page == neighbors.page(FOLDER)
    run = lines.read(FOLDER)["photographs.reduction-0.6"]
    kept = np.array([int(text) for text in run["shared"].split()])
    rows, _ = markdown.tables(page)
    value, *_ = markdown.interval(rows[0]["recall, %, photographs"])
    assert value == pytest.approx(10 * kept.mean(), abs=0.051)
