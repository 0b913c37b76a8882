"""Pictures of the pages, drawn from the figures in docs/tables.

python -m experiments.figures

Each is an SVG in docs. Its description is a digest of its points, by which a test finds
a picture that is older than its figures.
"""

import hashlib
import json

import matplotlib

from experiments import neighbors, recovery, results, study
from imagepiece_jax.common.files import read_json, replacing
from imagepiece_jax.common.plotting import new_figure

DOCS = results.ROOT / "docs"
STYLE = {
    "svg.hashsalt": "imagepiece_jax",  # else ids are random
    "svg.fonttype": "path",  # letters look alike where the font is missing
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
# Of Okabe and Ito's colors, which color-blind people tell apart
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#555555"

EARLIER = ("-trials", "-batch32", "-500steps")  # cells of recipes that are over
SHARES = {0.6: BLUE, 0.5: ORANGE, 0.4: GREEN}

FUSION = {neighbors.FUSION_HALF: "0.5", neighbors.FUSION: "0.6"}
FUSION[neighbors.FUSION_MOST] = "0.75"
TOME = {"reduction=0.5": "0.5", "reduction=0.6": "0.6", "tome:macs=0.7": "0.7"}
FAMILIES = (  # name, {setting: text beside its point}, color, marker
    ("ToMe", TOME, BLUE, "o"),
    ("fusion", FUSION, ORANGE, "s"),
    ("fusion in 4 blocks", {neighbors.FUSION_FEW: "0.6"}, GREEN, "D"),
    ("smaller image", {"image_size=168": "168", "image_size=182": "182"}, GRAY, "^"),
)
CONTROLS = {"JPEG 75": "saved as JPEG 75", "mirrored": "mirrored"}


def draw_axes(xlabel: str, ylabel: str):
    """A figure of a page's width, and its empty axes."""
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    figure.subplots_adjust(0.09, 0.13, 0.98, 0.97)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    return figure, axes


def mark(axes, x, y, label: str, color: str, is_filled: bool, marker="o", line="none"):
    """Draw points, full or hollow; a label that starts with _ is not in the legend."""
    face = color if is_filled else "white"
    look = {"color": color, "marker": marker, "linestyle": line, "markersize": 7}
    axes.plot(x, y, label=label, markerfacecolor=face, zorder=3, **look)


def note(axes, text: str, x: float, y: float, color: str, offset=(7, -11)):
    """Write a text beside a point, `offset` in points of the font away."""
    axes.annotate(text, (x, y), offset, color=color, textcoords="offset points")


def draw_recovery(lines):
    """Held-out KL over steps: a curve for each cell of DeiT-Ti at a share."""
    figure, axes = draw_axes("training steps", "KL divergence on held-out images")
    shown = set()
    for name, line in lines.items():
        share = line["reduction"]
        is_shown = line["model"] == "deit" and line["size"] == 224
        if name.endswith(EARLIER) or not is_shown or share not in SHARES:
            continue
        color = SHARES[share]
        steps, values = zip(*line["curve"], strict=True)
        axes.plot(steps, values, ".-", color=color, label=f"_{name}")
        mark(axes, [0], [line["before"]], f"_{name}, before", color, False)
        mark(axes, line["steps"], line["after"], f"_{name}, after", color, True)
        if share not in shown:
            shown.add(share)
            note(axes, f"before, {share}", 0, line["before"], color, (9, 4))
            note(axes, f"after, {share}", line["steps"], line["after"], color, (9, -4))
    axes.margins(x=0.18)
    axes.set_ylim(bottom=0)
    return figure


def draw_search(runs, rows):
    """Neighbors kept over milliseconds; the dense model on changed images as lines.

    runs: lines of `neighbors`, by cell
    rows: of its times
    """

    def kept(setting):
        cell = neighbors.Cell("photographs", setting)
        return neighbors.percents(runs, cell, "shared").mean()

    text = "milliseconds per image (onnxruntime, two threads)"
    figure, axes = draw_axes(text, "nearest neighbors kept, %")
    times = {}
    for row in rows:
        if row["runtime"] == "onnxruntime":
            times[row["setting"]] = row["ms"][0]
    mark(axes, times["dense"], kept("dense"), "dense", "black", True, "*")
    for name, settings, color, marker in FAMILIES:
        x = [times[setting] for setting in settings]
        y = [kept(setting) for setting in settings]
        mark(axes, x, y, name, color, False, marker, "-")
        for setting, text in settings.items():
            note(axes, text, times[setting], kept(setting), color)
            recovered = f"recovered {setting}"
            if recovered in neighbors.RECOVERED:
                label = f"_{recovered}"
                mark(axes, times[setting], kept(recovered), label, color, True, marker)
    for control, text in CONTROLS.items():
        axes.axhline(kept(control), color="black", linestyle=":", label=f"_{control}")
        note(axes, text, 108, kept(control), "black", (0, 4))
    axes.legend(loc="upper left")
    return figure


def draw_comparison(rows):
    """Points lost over speed: reductions, and the dense model on smaller images."""
    figure, axes = draw_axes("times as fast as dense, on a CPU", "top-1 points lost")
    for start, name, color, marker in (
        ("reduction=", "reduction", BLUE, "o"),
        ("image_size=", "smaller image", ORANGE, "s"),
    ):
        chosen = [row for row in rows if row["typed"].startswith(start)]
        x = [row["cpu"][0] for row in chosen]
        for field, text in (("lost", "off the shelf"), ("recovered", "recovered")):
            y = [row[field][0] for row in chosen]
            is_filled = field == "recovered"
            mark(axes, x, y, f"{name}, {text}", color, is_filled, marker, "-")
            for row, right, height in zip(chosen, x, y, strict=True):
                note(axes, row["typed"].removeprefix(start), right, height, color)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    return figure


def draw_all():
    """{file of docs: its figure}, of the figures that are there today."""
    folder = results.ROOT / neighbors.FOLDER
    runs = study.read(neighbors.cells(), folder)
    times = read_json(folder / "times.json")["rows"]
    return {
        "recovery.svg": draw_recovery(recovery.read_lines()),
        "search.svg": draw_search(runs, times),
        "comparison.svg": draw_comparison(results.read_results().readme),
    }


def points(figure) -> dict[str, list]:
    """{label: [[x, ..], [y, ..]]} of what a figure shows."""
    (axes,) = figure.axes
    return {line.get_label(): line.get_data() for line in axes.lines}


def digest(figure) -> str:
    """Sixteen digits of all points, to six decimals."""
    found = {}
    for label, (x, y) in points(figure).items():
        found[label] = [[f"{value:.6f}" for value in values] for values in (x, y)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def write(figure, path):
    """Write a figure as an SVG that is the same on every day."""
    metadata = {"Date": None, "Creator": None, "Description": digest(figure)}
    with replacing(path) as new:
        figure.savefig(new, format="svg", metadata=metadata)


def main():
    with matplotlib.rc_context(STYLE):
        for name, figure in draw_all().items():
            write(figure, DOCS / name)


if __name__ == "__main__":
    main()
