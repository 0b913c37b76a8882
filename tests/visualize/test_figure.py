"""Views hold the numbers of a trace, and figures are written for every kind."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.visualize import figure
from tests.visualize import traces


def test_views_show_the_numbers_of_the_trace():
    shown = figure.views(traces.hard(), 1)
    first, second, last = shown["attention"]
    # Roots of 0.1, 0.05, 0.2, 0.4, 0.1, 0.05 over the largest, 0.4.
    expected = [0.5, 0.125**0.5, 0.5**0.5, 1, 0.5, 0.125**0.5]
    np.testing.assert_allclose(first.values, expected, rtol=1e-6)
    assert (first.title, second.title) == ("attention, block 1", "attention, block 2")
    # Both patches of a token have its value, the dropped one has none.
    np.testing.assert_allclose(last.values, [0.25, 0.25, 0.5, 0.125**0.5, 1, np.nan])
    assert last.note == "largest 64.0 %"
    sizes = shown["sizes"][1]
    np.testing.assert_array_equal(sizes.values, [1, 1, 0, 0, 0, np.nan])
    assert (sizes.title, sizes.note) == ("sizes, before block 3", "1 to 2 patches")
    maps = figure.views(traces.soft(), 0)["weights"]
    np.testing.assert_allclose(maps[1].values, [0, 0, 0.25, 0.5, 0.75, 1], rtol=1e-6)
    assert [m.note for m in maps] == ["largest weight 50.0 %", "largest weight 40.0 %"]


@pytest.mark.parametrize("kind, rows", [("hard", 3), ("soft", 2), ("dense", 1)])
def test_figures_are_written_for_every_kind(tmp_path, kind, rows):
    figure.save(tmp_path / "f.png", traces.images()[0], "a", getattr(traces, kind)(), 0)
    with Image.open(tmp_path / "f.png") as picture:
        panels = (picture.height - 40) // (228 + 58)
        assert picture.format == "PNG"
        assert panels == rows
