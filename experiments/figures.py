"""Pictures of the pages, drawn from the figures in docs/results.

python -m experiments.figures

Each picture is an SVG in docs; its description is a digest of its points.
"""

import hashlib
import itertools
import json

import matplotlib

from experiments import recovery, results
from imagepiece_jax.common.files import replacement_file
from imagepiece_jax.common.plotting import new_figure

DOCS = results.ROOT / "docs"
STYLE = {
    "svg.hashsalt": "imagepiece_jax",  # else ids are random
    "svg.fonttype": "path",  # letters look alike where the font is missing
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "legend.frameon": False,
}
# Of Okabe and Ito's colors, which color-blind people tell apart
BLUE, ORANGE, GREEN, GRAY = COLORS = ("#0072B2", "#D55E00", "#009E73", "#555555")
COLORS += ("#CC79A7", "#56B4E9", "#E69F00", "#000000")


def draw_axes(xlabel, ylabel):
    """A figure of a page's width, and its empty axes."""
    figure = new_figure(7.5, 4.2)
    axes = figure.add_axes((0.09, 0.13, 0.89, 0.84), xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    return figure, axes


def plot_points(axes, x, y, label, color, marker="o", full=True, line="none"):
    """Draw points, full or hollow; a label that starts with _ is not in the legend."""
    look = {"color": color, "marker": marker, "linestyle": line, "zorder": 3}
    axes.plot(x, y, label=label, mfc=color if full else "white", ms=7, **look)


def annotate_point(axes, text, x, y, color, position):
    """Write a text whose center is `position`, in 1/72 inch, from a point."""
    look = {"color": color, "ha": "center", "textcoords": "offset points"}
    axes.annotate(text, (x, y), position, **look)


def draw_recovery(lines):
    """Held-out KL over training steps: a curve for each cell of `peaks`."""
    figure, axes = draw_axes("training steps", "KL divergence on held-out images")
    shown = [name for name in lines if "peaks" in name]
    shown = [name for name in shown if lines[name]["measure"] == "KL"]
    for name, color in zip(shown, itertools.cycle(COLORS), strict=False):
        line = lines[name]
        axes.plot(*zip(*line["curve"], strict=True), ".-", color=color, label=name)
        plot_points(axes, 0, line["before"], f"_{name}, before", color, full=False)
        plot_points(axes, line["steps"], line["after"], f"_{name}, after", color)
    plot_points(axes, [], [], "before", "black", full=False)
    plot_points(axes, [], [], "after", "black")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower left", ncols=2)
    return figure


def draw_comparison(rows):
    """Points lost over speed: reductions, and the dense model on smaller images."""
    figure, axes = draw_axes("times as fast as dense, on a CPU", "top-1 points lost")
    for typed, name, color, marker, noted, position in (
        ("reduction=", "reduction", BLUE, "o", "recovered", (0, -16)),
        ("image_size=", "smaller image, pixels", ORANGE, "s", "lost", (0, 8)),
    ):
        chosen = [row for row in rows if row["typed"].startswith(typed)]
        x = [row["cpu"][0] for row in chosen]
        for field, text in (("lost", "off the shelf"), ("recovered", "recovered")):
            if field not in chosen[0]:
                continue
            y = [row[field][0] for row in chosen]
            look = {"full": field == "recovered", "line": "-"}
            plot_points(axes, x, y, f"{name}, {text}", color, marker, **look)
        for row, right in zip(chosen, x, strict=True):
            size = row["typed"].removeprefix(typed)
            annotate_point(axes, size, right, row[noted][0], color, position)
    axes.set_ylim(-1, 13)
    axes.legend(loc="upper left")
    return figure


def draw_all():
    """{name: figure}, from today's data."""
    with matplotlib.rc_context(STYLE):
        return {
            "recovery": draw_recovery(recovery.read_lines()),
            "comparison": draw_comparison(results.read_results().readme),
        }


def points_digest(figure):
    """Sixteen digits of all points and their labels."""
    lines = figure.axes[0].lines
    points = [(line.get_label(), line.get_xydata().round(6).tolist()) for line in lines]
    return hashlib.sha256(json.dumps(points).encode()).hexdigest()[:16]


def main():
    for name, figure in draw_all().items():
        metadata = {"Date": None, "Creator": None, "Description": points_digest(figure)}
        picture = replacement_file(DOCS / f"{name}.svg")
        with matplotlib.rc_context(STYLE), picture as new:
            figure.savefig(new, format="svg", metadata=metadata)


if __name__ == "__main__":
    main()
