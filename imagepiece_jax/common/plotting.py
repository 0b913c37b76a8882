"""Figures of matplotlib, drawn without a display and written as whole files."""

import math
import os
import textwrap
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image

from imagepiece_jax.common.files import replacing

DPI = 100
# Curves in one panel: more cross too often, and have no colors that tell them apart.
TOGETHER = 5
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "black")
MARKERS = "osD^v"
COLUMNS = (5, 4, 3)  # of a page of panels
PANEL = (2.5, 2.1)  # inches of a panel
TITLE = 32  # letters in a line of a panel's title
# Curves that every panel shows: how they look there.
REFERENCES = (("black", "-"), ("dimgray", "--"), ("dimgray", ":"))


def new_figure(width: float, height: float, layout: str | None = None):
    """A matplotlib figure without a display; width and height in inches of 100 dots."""
    # Imported here: it takes a third of a second, and most processes draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def draw_curves(
    path: str | os.PathLike,
    xlabel: str,
    ylabel: str,
    curves: Mapping[str, Sequence],
    level: tuple[str, float] | None = None,
    references: Collection[str] = (),
    xticks: Sequence[float] = (),
    apart: bool = False,
):
    """Write a PNG of curves with their intervals.

    Up to TOGETHER share a panel. More have one each, which is named after its curve and
    shows all others behind it in pale gray: a color would stand for several of them.

    apart: whether few have a panel each, too, as their bands would cover each other

    curves: by name [(x, (value, low, high))], in any order of x
    level: name and value of a horizontal line
    references: names of curves that each of many panels shows, too; the first three
    Raises RunError where it cannot be written.
    """
    many = apart or len(curves) > TOGETHER
    shown = 1
    columns = 1
    rows = 1
    size = (9.5, 5)
    if many:
        shown = len(curves)
        # As few empty places as can be.
        columns = min(COLUMNS, key=lambda count: -shown % count)
        rows = math.ceil(shown / columns)
        size = (columns * PANEL[0], rows * PANEL[1] + 0.6)
    figure = new_figure(*size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    used, unused = np.split(panels.ravel(), [shown])
    for axes in unused:
        axes.set_axis_off()
    named = {name: sorted(points) for name, points in curves.items()}
    if many:
        _draw_each(used, named, references)
    else:
        for index, (name, points) in enumerate(named.items()):
            look = {"color": COLORS[index], "marker": MARKERS[index], "label": name}
            _draw_curve(used[0], points, **look)
    for axes in used[-columns:]:  # a place below them may be empty
        axes.tick_params(labelbottom=True)
    for axes in used:
        if level:
            name, value = level
            axes.axhline(value, color="black", linewidth=0.8, linestyle=":", label=name)
        if len(xticks):
            axes.set_xticks(xticks)
        axes.grid(alpha=0.3)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    lines, names = used[0].get_legend_handles_labels()
    if many:
        own = [*_legend_of_each(curves, references)]
        lines = [*own, *lines]
        names = [*[line.get_label() for line in own], *names]
    if lines:
        look = {"loc": "outside right upper", "frameon": False, "fontsize": 8}
        if many:
            look |= {"loc": "outside upper left", "ncols": len(lines)}
        figure.legend(lines, names, **look)
    save_figure(figure, path, colors=64)


def _draw_each(panels, curves, references):
    """A panel for each curve, with the references and, in gray, the others."""
    shown = [name for name in references if name in curves][: len(REFERENCES)]
    pale = {"color": "lightgray", "linewidth": 0.8, "zorder": 1}
    looks = dict.fromkeys(curves, pale)
    for name, (color, style) in zip(shown, REFERENCES, strict=False):
        looks[name] = {
            "color": color,
            "linestyle": style,
            "linewidth": 1,
            "label": name,
        }
    for axes, title in zip(panels, curves, strict=True):
        for name, points in curves.items():
            if name != title or name in shown:
                x = [number for number, _ in points]
                values = [interval[0] for _, interval in points]
                marker = "." if len(x) == 1 else None
                axes.plot(x, values, marker=marker, **looks[name])
        _draw_curve(axes, curves[title], color=COLORS[0], marker=MARKERS[0])
        axes.set_title(textwrap.fill(title, TITLE), fontsize=9, loc="left")


def _legend_of_each(curves, references):
    """Yield what stands in the legend for the curve of every panel, and for others."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    look = {"color": COLORS[0], "marker": MARKERS[0], "markersize": 4}
    yield Line2D([], [], label="the method above the panel", **look)
    yield Patch(color=COLORS[0], alpha=0.18, linewidth=0, label="its 95 % interval")
    if {*curves} - {*references}:
        yield Line2D([], [], color="lightgray", label="the other methods")


def _draw_curve(axes, points, color, marker, label=None):
    """A curve with a band of its intervals, and a bar where it is one point."""
    x, intervals = zip(*points, strict=True)
    value, low, high = np.transpose(intervals)
    look = {"color": color, "marker": marker, "markersize": 4, "zorder": 3}
    if len(x) > 1:
        axes.plot(x, value, label=label, **look)
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    else:
        axes.errorbar(x, value, [value - low, high - value], label=label, **look)


def save_figure(figure, path: str | os.PathLike, colors: int | None = None):
    """Write a matplotlib figure as a whole PNG. Raises RunError where it fails.

    colors: at most so many, chosen for this figure: with 144 photographs look alike and
        take a third of the bytes; None: any
    """
    with replacing(path) as new:
        if colors is None:
            figure.savefig(new, format="png")
            return
        figure.canvas.draw()
        page = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        # Patterns of dithering would be more bytes.
        options = {"kmeans": 1, "dither": Image.Dither.NONE}
        page = page.quantize(colors, Image.Quantize.MAXCOVERAGE, **options)
        page.save(new, "PNG", optimize=True)
