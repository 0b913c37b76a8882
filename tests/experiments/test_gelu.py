"""What tanh GELU changes: the page's tables, and their claims."""

import contextlib

import numpy as np
import pytest

from experiments import gelu, results
from imagepiece_jax.evaluate.cache import ResultCache
from imagepiece_jax.evaluate.statistics import mean_difference
from tests.models import tiny

DEIT = "deit_tiny_patch16_224"


def test_the_page_has_the_tables():
    page = gelu.PAGE.read_text("utf-8")
    assert results.filled(page, gelu.tables()) == page


@pytest.mark.parametrize("model", gelu.read_points())
@pytest.mark.parametrize("reduction", gelu.REDUCTIONS)
def test_tanh_changes_less_than_bfloat16(model, reduction):
    """A tenth of it in float32; in bfloat16 it adds less than there was."""
    points = gelu.read_points()[model]
    rounded = points[reduction, "bfloat16", "exact"]
    tanh = points[reduction, "float32", "tanh"]
    both = points[reduction, "bfloat16", "tanh"]
    assert tanh.change.mean() < 0.11 * rounded.change.mean()
    added = mean_difference(both.to_dense, rounded.to_dense)
    assert added.value < rounded.change.mean()
    if reduction != gelu.DENSE:
        assert added.low < 0


@pytest.mark.parametrize("reduction", gelu.REDUCTIONS)
def test_tanh_in_float16_changes_less_than_bfloat16(reduction):
    """But more than float16 does, where nothing is reduced."""
    points = gelu.read_points()[DEIT]
    rounded = points[reduction, "bfloat16", "exact"].change.mean()
    exact = points[reduction, "float16", "exact"].change.mean()
    tanh = points[reduction, "float16", "tanh"].change.mean()
    assert tanh < 0.3 * rounded
    if reduction == gelu.DENSE:
        assert exact < 0.2 * tanh


def test_a_reduction_makes_more_of_rounding():
    points = gelu.read_points()[DEIT]
    dense, reduced = (points[name, "bfloat16", "exact"] for name in gelu.REDUCTIONS)
    assert reduced.change.mean() > 10 * dense.change.mean()


@pytest.mark.parametrize("dtype, forms", [("float32", 1), ("float16", 2)])
def test_changes_are_measured_image_by_image(tmp_path, monkeypatch, dtype, forms):
    """Exact GELU in float32 is what others are compared with."""
    monkeypatch.setattr(gelu, "FOLDER", tmp_path)
    monkeypatch.setattr(gelu.study, "BATCH", 3)
    monkeypatch.setattr(gelu, "REDUCTIONS", {gelu.DENSE: None})
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, 20, 20, 3), np.uint8) for n in (3, 2)]
    vit = tiny.pretrained(depth=1)
    with contextlib.closing(ResultCache(tmp_path)) as cache:
        gelu.measure("tiny", vit, images, cache, [dtype])
    points = gelu.read_points()["tiny"]
    assert [*points] == [(gelu.DENSE, dtype, form) for form in gelu.FORMS[-forms:]]
    for point in points.values():
        assert point.change.shape == point.same.shape == (5,)
        assert all(0 < point.change) and all(point.change < 1e-3)


def test_the_distance_of_vectors_is_that_of_their_directions():
    one = np.array([[3.0, 4.0], [1.0, 0.0]])
    other = np.array([[30.0, 40.0], [0.0, 2.0]])
    np.testing.assert_allclose(gelu.distance(one, other), [0, 1], atol=1e-12)
