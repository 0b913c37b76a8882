import numpy as np
import pytest

from imagepiece_jax.common import plotting

pytest.importorskip("matplotlib")


def test_every_curve_has_a_look_and_a_name(monkeypatch, tmp_path):
    figures = []
    new_figure = plotting.new_figure

    def keep_figure(*size, **options):
        figures.append(new_figure(*size, **options))
        return figures[-1]

    monkeypatch.setattr(plotting, "new_figure", keep_figure)
    curves = {"point": [(1, (50, 45, 55))]}
    for i in range(19):
        curves[f"method {i}"] = [(x, (x + i, x + i - 1, x + i + 1)) for x in (3, 1, 2)]
    path = tmp_path / "a.png"
    plotting.draw_curves(path, "cost", "gain", curves, level=("dense", 7.5))
    assert path.read_bytes().startswith(b"\x89PNG")
    ((axes, legend),) = [(*figure.axes, *figure.legends) for figure in figures]
    point, *lines, level = axes.lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 19
    drawn = [np.asarray(line.get_ydata()).tolist() for line in lines]
    assert drawn == [[1 + i, 2 + i, 3 + i] for i in range(19)]
    assert set(level.get_ydata()) == {7.5}
    shown = {text.get_text() for text in legend.get_texts()}
    assert shown == {*curves, "dense"}
