"""Figures of docs: what they show is what the tables have."""

import numpy as np
import pytest

from experiments import figures, parts
from imagepiece_jax.common import plotting
from tests import markdown


def test_curves_are_the_rows_of_the_tables():
    page = "docs/tables/paper.md"
    row = {"model": "ToMe", "figure": "acc1, % (measured)"}
    masked = figures.masks()
    assert [*masked] == ["DeiT", "EViT", "ToMe", "ImagePiece, patch stem"]
    for count, estimate in masked["ToMe"]:
        cell = markdown.cell(page, "", row, f"{count} masks")
        assert markdown.interval(cell) == estimate
    curves, dense = figures.rates()
    row = {"model": "DeiT", "weights": "as trained"}
    cell = markdown.cell(page, "`table3`", row, "acc1, % (measured)")
    assert dense == markdown.interval(cell)[0]
    assert (0.622, (81.1, 78.6, 83.4)) in curves["ToMe"]
    assert [len(points) for points in curves.values()] == [6, 6, 5, 6]


def test_curves_of_saliency_have_a_point_a_share():
    curves = figures.saliency()
    assert len(curves) == 15
    for points in curves.values():
        shares = [share for share, _ in points]
        assert len(shares) == len({*shares}) >= 4
    (found,) = [estimate for share, estimate in curves["tome"] if share == 0.6]
    row = {"share": "0.6", "method": "`tome`"}
    cell = markdown.cell("docs/tables/saliency.md", "", row, "IoU")
    assert found == markdown.interval(cell)


def test_the_scale_of_parts_holds_every_cell(monkeypatch):
    drawn = []
    monkeypatch.setattr(plotting, "save_figure", lambda f, *_, **__: drawn.append(f))
    parts.draw("parts.png", parts.measured_cells(parts.read_points()))
    axes, bar = drawn[0].axes
    (image,) = axes.images
    low, high = image.get_clim()
    values = image.get_array()
    assert (low, high) == (values.min(), values.max())
    assert 10**high == pytest.approx(6.191, abs=1e-3)
    texts = {text.get_text() for text in axes.texts}
    assert {"3.00", "6.19"} <= texts
    ends = np.log10([0.1, 5])
    assert {*ends} <= {*bar.get_yticks()}
