"""Figures of matplotlib, drawn without a display and written as whole files."""

import os

import numpy as np
from PIL import Image

from imagepiece_jax.common.files import replacing

DPI = 100
MARKERS = "osD^vP*X<>ph"  # of curves


def new_figure(width: float, height: float, layout: str | None = None):
    """A matplotlib figure without a display; width and height in inches of 100 dots."""
    # Imported here: it takes a third of a second, and most processes draw nothing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


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
