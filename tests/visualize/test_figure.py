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


@pytest.mark.parametrize("kind, rows", [("hard", 2), ("soft", 1), ("dense", 1)])
def test_figures_are_written_for_every_kind(tmp_path, kind, rows):
    figure.write_figure(
        tmp_path / "f.png",
        handmade_traces.images()[0],
        "a",
        getattr(handmade_traces, f"{kind}_trace")(),
        0,
    )
    with Image.open(tmp_path / "f.png") as picture:
        panels = (picture.height - 40) // (228 + 58)
        assert picture.format == "PNG"
        assert panels == rows
