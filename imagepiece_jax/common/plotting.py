"""Matplotlib figures, drawn without a display and written as whole files."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from imagepiece_jax.common.files import AnyPath, replacement_file

if TYPE_CHECKING:  # imports half of Matplotlib
    from matplotlib.figure import Figure

DOTS_PER_INCH = 100
CURVE_MARKERS = "osD^v"


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = None
) -> "Figure":
    """Create a figure without a display. Width and height: inches of 100 dots."""
    # Imported here: it takes a third of a second, and most processes draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def draw_curves(
    path: AnyPath,
    xlabel: str,
    ylabel: str,
    curves: Mapping[str, Sequence],
    level: tuple[str, float] | None = None,
) -> None:
    """Write a PNG of curves with intervals: bands, or error bars of single points.

    curves: {name: [(x, (value, low, high)), ..]}, in any order of x
    level: name and value of a horizontal line
    """
    figure = new_figure(9.5, 5, layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        # A curve needs rising x.
        x, intervals = zip(*sorted(points), strict=True)
        values, lows, highs = np.transpose(intervals)  # of [points, 3]
        # Colors repeat after ten.
        marker = CURVE_MARKERS[index // 10 % len(CURVE_MARKERS)]
        line_style: dict[str, Any] = {"color": f"C{index % 10}", "marker": marker}
        if len(x) > 1:
            axes.plot(x, values, label=name, **line_style)
            axes.fill_between(x, lows, highs, color=line_style["color"], alpha=0.18)
        else:
            bar_lengths = [values - lows, highs - values]
            axes.errorbar(x, values, bar_lengths, label=name, **line_style)
    if level:
        level_name, y = level
        axes.axhline(y, color="black", linewidth=0.8, linestyle=":", label=level_name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def save_figure(figure: "Figure", path: AnyPath) -> None:
    """Write a figure as a whole PNG. Raises RunError if the file cannot be written."""
    with replacement_file(path) as new_path:
        figure.savefig(new_path, format="png")
