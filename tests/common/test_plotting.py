import numpy as np
import pytest

from imagepiece_jax.common import plotting

pytest.importorskip("matplotlib")


def test_every_curve_has_a_look_and_a_name(monkeypatch):
    figures = []
    monkeypatch.setattr(
        plotting, "save_figure", lambda figure, _: figures.append(figure)
    )
    curves = {}
    for i in range(19):
        curves[f"method {i}"] = [(x, (x + i, x + i - 1, x + i + 1)) for x in (3, 1, 2)]
    plotting.draw_curves("a.png", "cost", "gain", curves, level=("dense", 7.5))
    (figure,) = figures
    (axes,) = figure.axes
    *lines, level = axes.lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 19
    drawn = [np.asarray(line.get_ydata()).tolist() for line in lines]
    assert drawn == [[1 + i, 2 + i, 3 + i] for i in range(19)]
    assert set(level.get_ydata()) == {7.5}
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == [*curves, "dense"]


def test_single_points_have_bars_and_a_file_is_whole(tmp_path):
    path = tmp_path / "curve.png"
    points = [(1, (50, 45, 55)), (2, (40, 35, 45))]
    plotting.draw_curves(path, "x", "y", {"a": points, "b": points[:1]})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]
