import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.visualize import figure
from tests.helpers import handmade_traces


def test_size_shares_come_from_the_trace():
    stage = handmade_traces.hard_trace().stages[1]
    shares, note = figure.size_shares(stage.sizes[1], stage.token_of_patch[1])
    np.testing.assert_array_equal(shares, [1, 1, 0, 0, 0, np.nan])
    assert note == "1 to 2 patches"


@pytest.mark.parametrize("index, rows", [(0, 2), (1, 1), (2, 1)])
def test_figures_are_written_for_every_kind(tmp_path, index, rows):
    """A hard reduction, a soft one and a dense model."""
    _, traces = handmade_traces.all_methods()
    image, *_ = handmade_traces.images()
    figure.write_figure(tmp_path / "f.png", image, "a", traces[index], 0)
    with Image.open(tmp_path / "f.png") as picture:
        panels = (picture.height - 40) // (228 + 58)
        assert picture.format == "PNG"
        assert panels == rows
