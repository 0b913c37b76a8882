"""Views hold the numbers of a trace, and figures are written for every kind."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.deploy.visualize import figure
from tests.deploy.visualize import traces


def test_views_show_the_numbers_of_the_trace():
    shown = figure.views(traces.hard(), 1)
    sizes = shown["sizes"][1]
    np.testing.assert_array_equal(sizes.values, [1, 1, 0, 0, 0, np.nan])
    assert (sizes.title, sizes.note) == ("sizes, before block 3", "1 to 2 patches")
    tokens = shown["tokens"][0]
    np.testing.assert_array_equal(tokens.values, traces.MERGED)
    assert (tokens.title, tokens.note) == ("block 1", "5 tokens")
    assert figure.views(traces.soft(), 0) == {"tokens": [None], "sizes": [None]}


@pytest.mark.parametrize("kind, rows", [("hard", 2), ("soft", 1), ("dense", 1)])
def test_figures_are_written_for_every_kind(tmp_path, kind, rows):
    figure.save(tmp_path / "f.png", traces.images()[0], "a", getattr(traces, kind)(), 0)
    with Image.open(tmp_path / "f.png") as picture:
        panels = (picture.height - 40) // (228 + 58)
        assert picture.format == "PNG"
        assert panels == rows
