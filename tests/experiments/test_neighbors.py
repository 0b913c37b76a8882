"""Neighbors of reduced encoders: by hand, and the figures of the pages."""

import json

import numpy as np
import pytest

from experiments import neighbors
from tests.helpers import markdown

FOLDER = markdown.ROOT / neighbors.FOLDER


def test_labeled_images_vote_by_cosine(monkeypatch):
    """Two of class 1 at 60 and 70 degrees weigh less than one of class 0 at 10."""
    monkeypatch.setattr(neighbors, "NEIGHBORS", 3)
    angles = np.radians([10, 60, 70, 180])
    labeled = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([0, 1, 1, 2])
    query = np.array([[1, 0]], np.float32)
    assert neighbors.voted(query, labeled, labels) == [0]
    # With the third vote closer they win: .98 against .5 and .64.
    labeled[2] = [np.cos(np.radians(50)), np.sin(np.radians(50))]
    assert neighbors.voted(query, labeled, labels) == [1]


def test_changes_of_an_image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    smooth = np.repeat(np.repeat(pixels[::8, ::8], 8, 0), 8, 1)[:40, :60]
    np.testing.assert_array_equal(neighbors.mirrored(smooth)[:, 0], smooth[:, -1])
    shifted = neighbors.shifted(smooth)
    np.testing.assert_array_equal(shifted[4:, 4:], smooth[:-4, :-4])
    np.testing.assert_array_equal(shifted[:4, 4:], smooth[-4:, :-4])
    assert neighbors.cropped(smooth).shape == smooth.shape
    # The center stays where it is, and a point beside it moves outward.
    wide = np.zeros((40, 60, 3), np.uint8)
    wide[:, 48:50] = 255
    bright = neighbors.cropped(wide)[20, :, 0].argmax()
    assert bright == pytest.approx(30 + (49 - 30) / 0.9, abs=1)
    assert 0 < np.abs(neighbors.compressed(smooth).astype(float) - smooth).mean() < 30


def test_the_page_is_made_from_the_lines():
    page = (FOLDER / "README.md").read_text("utf-8")
    assert page == neighbors.page(FOLDER)
    runs = map(json.loads, (FOLDER / "runs.jsonl").read_text("utf-8").splitlines())
    (run,) = [run for run in runs if run["name"] == "photographs, reduction=0.6"]
    kept = np.array([int(text) for text in run["shared"].split()])
    rows, *_ = markdown.tables(page)
    (row,) = [row for row in rows if row["setting"] == "`reduction=0.6`"]
    value, *_ = markdown.interval(row["kept, %, photographs"])
    assert value == pytest.approx(10 * kept.mean(), abs=0.051)


CHANGES = {"saved as": "JPEG 75", "shifted": "shifted 4 pixels", "mirrored": "mirrored"}


def test_the_page_of_search_has_figures_of_the_study():
    """Its rows name changes of photographs in words."""
    kept, _, classes, *_, times = markdown.tables((FOLDER / "README.md").read_text())
    by_setting = {row["setting"].strip("`"): row for row in kept}
    points = {row["setting"].strip("`"): row["points"] for row in classes}
    speeds = {row["setting"]: row["onnxruntime"] for row in times}
    (rows,) = [
        table
        for table in markdown.tables(markdown.section("docs/search.md"))
        if "kept, %" in table[0]
    ]
    assert len(rows) >= 8
    for row in rows:
        name = row["setting"].replace("`", "")
        if name.startswith("dense, photographs "):
            change = name.removeprefix("dense, photographs ")
            found = [each for word, each in CHANGES.items() if change.startswith(word)]
            name = found[0] if found else change
        elif ", recovered" in name:
            setting, how = name.split(", ")
            name = f"{how} {setting}"
        assert by_setting[name]["kept, %, photographs"].split(" ")[0] == row["kept, %"]
        assert by_setting[name]["mixed, %"].split(" ")[0] == row["mixed, %"]
        assert row["of its class, points"] == points.get(name, "").split(" ")[0]
        if row["times as fast"]:
            setting, *_ = row["setting"].replace("`", "").split(", ")
            assert f" ({row['times as fast']} [" in speeds[setting]
