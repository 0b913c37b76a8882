"""Areas under curves, tables and plots."""

import numpy as np
import pytest

from experiments import hyperspeed, render
from imagepiece_jax.evaluate.statistics import Estimate


def test_area_of_straight_lines_by_hand():
    """From (1, 10) over (3, 30) to (4, 0): between 2 and 4, (25 + 15) / 2."""
    found = hyperspeed.area([4, 1, 3], [0, 10, 30], 2, 4)
    assert found == pytest.approx((25 * 1 + 15 * 1) / 2)


def test_area_is_that_of_many_points():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, 7), rng.uniform(0, 1, 7)
    order = np.argsort(x)
    low, high = sorted(x)[1] + 0.01, sorted(x)[5]
    at = np.linspace(low, high, 200_001)
    brute = np.interp(at, x[order], y[order]).mean()
    assert hyperspeed.area(x, y, low, high) == pytest.approx(brute, abs=1e-5)


def test_common_range_is_where_all_curves_are():
    curves = {"a": [{"x": 1}, {"x": 4}], "b": [{"x": 5}, {"x": 2}]}
    assert hyperspeed.common_range(curves, "x") == (2, 4)
    curves["c"] = [{"x": 8}, {"x": 9}]
    assert hyperspeed.common_range(curves, "x") is None


def test_tables_are_markdown():
    text = render.table(["a", "b"], [["x", None], [1, 2.5]])
    assert text == "| a | b |\n| --- | --- |\n| x |  |\n| 1 | 2.5 |"


def test_cells_of_speeds():
    assert render.speed_cell(None) == "not measured"
    speed = {"ratio": 1.536, "ratio_min": 1.5, "ratio_max": 1.57}
    assert render.speed_cell(speed) == "1.54 (1.50 to 1.57)"


def test_curves_have_bands_and_leave_no_half_file(tmp_path):
    path = tmp_path / "curve.png"
    points = [(1, Estimate(50, 45, 55)), (2, Estimate(40, 35, 45))]
    render.curves(path, "x", "y", {"a": points, "b": points[:1]})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]
