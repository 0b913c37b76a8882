"""Pages of Markdown, their notes, and plots of curves with bands of their intervals."""

import os
from collections.abc import Iterable

from imagepiece_jax.benchmark import device
from imagepiece_jax.common import plotting, tables
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.data.sources import short_name
from imagepiece_jax.evaluate import statistics

BLANK = "not measured"
TOKENS_LEFT = "tokens left, with class token"


def table(head: list[str], rows: Iterable[list]) -> str:
    """A Markdown table; cells are text, None is blank."""
    return "\n".join(tables.markdown(head, rows))


def page(context, name: str, title: str, *parts: str):
    """Write OUT/name.md from parts of Markdown, and print it."""
    text = "\n\n".join([f"## `{name}`: {title}", *filter(None, parts)]) + "\n"
    replace_file(context.out / f"{name}.md", text)
    print(text, flush=True)


def images_note(context) -> str:
    """On which images, as a sentence."""
    images = context.images
    return (
        f"{len(images)} images of {short_name(images.name)}, {images.image_size} "
        "pixels a side; brackets are 95 % intervals."
    )


def models_note(context) -> str:
    """How the models came to be, and what their figures may be compared with."""
    note = context.models.note
    if context.images.name != "imagenet2012":
        note += (
            " Other images than ImageNet's validation set: published figures are there "
            "to be read, not to be compared with."
        )
    return note


def speed_note(context) -> str:
    """How speeds were measured; empty where they were not."""
    if not context.settings.speed:
        return ""
    settings = context.settings
    return (
        f"Speeds: {device.name()}, batches of {settings.speed_batch_size}, against the "
        f"dense model in turns, median of {settings.repeats} repeats of "
        f"{settings.seconds:g} s or more after {settings.warmup} calls."
    )


def speed_cell(speed: dict | None) -> str:
    """ "1.54 (1.50 to 1.57)", times as fast as dense."""
    if speed is None:
        return BLANK
    low, high = speed["ratio_min"], speed["ratio_max"]
    return f"{speed['ratio']:.2f} ({low:.2f} to {high:.2f})"


def number(value: float | None, digits: int = 2) -> str:
    """A published figure; blank where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def curves(path: str | os.PathLike, xlabel: str, ylabel: str, series: dict):
    """A PNG of curves with bands: {label: [(x, Estimate)]}, in any order of x."""
    figure = plotting.new_figure(7.5, 5, layout="constrained")
    axes = figure.add_subplot()
    markers = "osD^vP*X<>ph"
    for i, (label, points) in enumerate(series.items()):
        points = sorted(points, key=lambda point: point[0])
        x = [at for at, _ in points]
        value, low, high = zip(*(estimate for _, estimate in points), strict=True)
        marker = markers[i % len(markers)]
        (line,) = axes.plot(x, value, marker=marker, markersize=4, label=label)
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    plotting.save_figure(figure, path)


def estimate(values: list[float]) -> statistics.Estimate:
    """A JSON list of three as an Estimate."""
    return statistics.Estimate(*values)
