"""How are figures shown? Markdown tables, and curves with bands of their intervals."""

import pathlib

from imagepiece_jax.common import tables
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.evaluate import statistics

BLANK = "not measured"
TOKENS_LEFT = "tokens left, with class token"


def table(head, rows):
    """A Markdown table; cells are text, None is blank."""
    return "\n".join(tables.markdown(head, rows))


def page(lab, name, title, *parts):
    """Write OUT/name.md from parts of Markdown, and print it."""
    text = "\n\n".join([f"## `{name}`: {title}", *filter(None, parts)]) + "\n"
    replace_file(lab.out / f"{name}.md", text)
    print(text, flush=True)


def images_note(lab):
    """On which images, as a sentence."""
    images = lab.images
    return (
        f"{len(images)} images of {short(images.name)}, {images.image_size} pixels a "
        "side; brackets are 95 % intervals."
    )


def short(name):
    """Name of a data set without this machine's folders: "csv:photos/labels.csv"."""
    kind, colon, path = name.partition(":")
    return kind + colon + "/".join(pathlib.Path(path).parts[-2:])


def speed_note(lab):
    """On what the clock ran; empty where it did not."""
    from imagepiece_jax.benchmark import device

    if not lab.timed:
        return ""
    rules = lab.rules
    return (
        f"Speeds: {device.name()}, batches of {lab.speed_batch}, against the dense "
        f"model in turns, median of {rules.repeats} repeats of {rules.seconds:g} s or "
        f"more after {rules.warmup} calls."
    )


def speed_cell(speed):
    """ "1.54 (1.50 to 1.57)", times as fast as dense."""
    if speed is None:
        return BLANK
    low, high = speed["ratio_min"], speed["ratio_max"]
    return f"{speed['ratio']:.2f} ({low:.2f} to {high:.2f})"


def number(value, digits=2):
    """A published figure; blank where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def curves(path, xlabel, ylabel, series, dashed=None):
    """A PNG of curves with bands: {label: [(x, Estimate)]}, in any order of x.

    dashed: {label: [(x, y)]}, without bands, such as published figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from imagepiece_jax.common import plotting

    figure = Figure((7.5, 5), 100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    markers, colours = "osD^vP*X<>ph", {}
    for i, (label, points) in enumerate(series.items()):
        points = sorted(points, key=lambda point: point[0])
        x = [at for at, _ in points]
        value, low, high = zip(*(estimate for _, estimate in points), strict=True)
        marker = markers[i % len(markers)]
        (line,) = axes.plot(x, value, marker=marker, markersize=4, label=label)
        colours[label] = line.get_color()
        axes.fill_between(x, low, high, color=colours[label], alpha=0.15, linewidth=0)
    for label, points in (dashed or {}).items():
        x, y = zip(*sorted(points), strict=True)
        name = f"{label} (published)"
        axes.plot(x, y, "--", color=colours.get(label), linewidth=1, label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    plotting.save_figure(figure, path)


def estimate(values):
    """A JSON list of three as an Estimate."""
    return statistics.Estimate(*values)
