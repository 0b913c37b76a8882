"""Figures of curves: each can be told from all others."""

import numpy as np
import pytest

from imagepiece_jax.common import plotting

to_hex = pytest.importorskip("matplotlib.colors").to_hex


def curves(count):
    return {
        f"method {i}": [(x, (x + i, x + i - 1, x + i + 1)) for x in (3, 1, 2)]
        for i in range(count)
    }


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A function that draws curves, and returns matplotlib's figure."""
    figures = []
    monkeypatch.setattr(plotting, "save_figure", lambda f, *_, **__: figures.append(f))

    def draw(*args, **options):
        plotting.draw_curves(tmp_path / "a.png", "cost", "gain", *args, **options)
        return figures[-1]

    return draw


def lines_of(axes):
    """{(color, line style): values} of what is drawn in a panel."""
    found = {}
    for line in axes.lines:
        look = to_hex(line.get_color()), line.get_linestyle(), line.get_marker()
        found.setdefault(look, []).append(np.asarray(line.get_ydata()).tolist())
    return found


@pytest.mark.parametrize("count", [1, plotting.TOGETHER])
def test_few_curves_share_a_panel_and_no_color(drawn, count):
    figure = drawn(curves(count))
    (axes,) = figure.axes
    found = lines_of(axes)
    assert len({color for color, *_ in found}) == len(found) == count
    assert [*found.values()] == [[[1 + i, 2 + i, 3 + i]] for i in range(count)]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*curves(count)]


@pytest.mark.parametrize("count", [plotting.TOGETHER + 1, 15, 17])
def test_many_curves_have_a_panel_each_that_is_named_after_it(drawn, count):
    figure = drawn(
        curves(count), level=("dense", 7.5), references=["method 2", "no", "method 4"]
    )
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == [*curves(count)]
    own = to_hex(plotting.COLORS[0])
    gray = to_hex("lightgray")
    for i, axes in enumerate(panels):
        found = lines_of(axes)
        ((color, style, marker),) = [look for look in found if look[0] == own]
        assert found[color, style, marker] == [[1 + i, 2 + i, 3 + i]]
        others = count - 2 - (i not in (2, 4))
        assert len(found[gray, "-", "None"]) == others
        assert len(found) == 5  # its own, the others, two references and the level
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    own = ["the method above the panel", "its 95 % interval", "the other methods"]
    assert sorted(names) == sorted([*own, "dense", "method 2", "method 4"])


def test_curves_have_bands_and_leave_no_half_file(tmp_path):
    path = tmp_path / "curve.png"
    points = [(1, (50, 45, 55)), (2, (40, 35, 45))]
    plotting.draw_curves(path, "x", "y", {"a": points, "b": points[:1]})
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]


def test_single_points_and_more_references_than_styles(drawn):
    points = {f"method {i}": [(i, (i, i - 1, i + 1))] for i in range(7)}
    figure = drawn(points, references=[*points])
    first = figure.axes[0]
    assert len(first.lines) >= 7
    assert len(first.containers) == 1
    assert all(line.get_marker() != "None" for line in first.lines[:7])
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[2:] == [*points][: len(plotting.REFERENCES)]  # and no other methods
