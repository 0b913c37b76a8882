"""What sizes in a direction change: the page's tables, and their claims."""

import contextlib
import itertools
import json

import numpy as np
import pytest

from experiments import results
from experiments import size_direction as study
from imagepiece_jax.evaluate.cache import ResultCache
from tests import markdown
from tests.models import tiny

DEIT = "deit_tiny_patch16_224"


def test_the_page_has_the_tables():
    page = study.PAGE.read_text("utf-8")
    assert results.filled(page, study.tables()) == page


def test_the_dense_model_hardly_notices():
    for points in study.read_points().values():
        assert 0 < points[study.DENSE,].to_dense.mean() < 5e-4


@pytest.mark.parametrize("dtype", study.TYPES)
def test_a_direction_costs_less_than_a_type(dtype):
    """The recommended reduction is within .01; for ToMe the interval is as wide."""
    points = study.read_points()[DEIT]
    three = study.paired(points, "most attended in 3 blocks", dtype, study.ODD)
    assert three.high < 0.01
    tome = study.paired(points, "ToMe", dtype, study.ODD)
    assert tome.low < 0 < tome.high < 0.02
    assert study.paired(points, "ToMe", "float32", study.EVERY).high < 0.01


def test_programs_are_compared_image_by_image(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    monkeypatch.setattr(study.study, "BATCH", 3)
    tome = {"name": "tome", "r_list": (9, 5), "prop_attn": True}
    monkeypatch.setattr(study, "REDUCTIONS", {"ToMe": tome})
    monkeypatch.setattr(study, "TYPES", ("float32",))
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, 20, 20, 3), np.uint8) for n in (3, 2)]
    vit = tiny.pretrained(depth=2)
    with contextlib.closing(ResultCache(tmp_path)) as cache:
        study.measure("tiny", vit, images, cache)
    (points,) = study.read_points().values()
    keys = itertools.product(["ToMe"], ["float32"], study.SIZES)
    assert {*points} == {(study.DENSE,), *keys}
    direction = points["ToMe", "float32", "direction"]
    assert direction.to_bias.shape == direction.same.shape == (5,)
    assert all(direction.to_bias < 1e-2)
    assert points["ToMe", "float32", "bias"].to_bias is None


def test_graphs_gain_nothing():
    lines = (study.FOLDER / "onnx.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["batch"] for row in rows} == {1, 8}
    text = " ".join(markdown.section("PERFORMANCE.md", "Tried").split())
    for runtime in ("onnxruntime", "OpenVINO"):
        ratios = [row["ratio"][0] for row in rows if row["runtime"] == runtime]
        ends = f"{min(ratios):.2f} to {max(ratios):.2f}"
        assert f"{ends} times as fast in {runtime}" in text or f"{ends} in" in text
