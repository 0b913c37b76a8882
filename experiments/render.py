"""Pages of Markdown and their notes."""

from collections.abc import Mapping
from typing import Any

from imagepiece_jax.benchmark import device
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.tables import markdown_table as table
from imagepiece_jax.evaluate import statistics

BLANK = "not measured"
TOKENS_LEFT = "tokens left, with class token"


def page(context, name: str, title: str, *parts: str):
    """Write OUT/name.md from parts of Markdown, and print it."""
    text = "\n\n".join([f"## `{name}`: {title}", *filter(None, parts)]) + "\n"
    replace_file(context.out / f"{name}.md", text)
    print(text, flush=True)


LEGEND = (
    "Brackets are 95 % intervals. Published figures are of trained models on "
    "ImageNet's validation set: to be read, not to be compared with."
)


def timing(settings) -> str:
    """How the speeds of a page were measured."""
    rules = settings.rules
    return (
        f"{device.name()}, batches of {settings.speed_batch_size}, in turns with the "
        f"dense model, {rules.repeats} repeats of {rules.seconds:g} s"
    )


def facts(context, more: Mapping[str, Any] | None = None) -> str:
    """Table of the images and models of a page; `more`: further rows, by name."""
    images = context.images
    settings = context.settings
    rows = {
        "images": images.text,
        "pixels a side": images.image_size,
        "models": context.models.note,
    }
    if settings.speed:
        rows["speeds"] = timing(settings)
    return f"{LEGEND}\n\n" + table(["", ""], (rows | dict(more or {})).items())


def speed_cell(speed: dict | None) -> str:
    """ "1.54 (1.50 to 1.57)", times as fast as dense."""
    if speed is None:
        return BLANK
    low = speed["ratio_min"]
    high = speed["ratio_max"]
    return f"{speed['ratio']:.2f} ({low:.2f} to {high:.2f})"


def number(value: float | None, digits: int = 2) -> str:
    """A published figure; blank where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def interval(values: list[float], digits: int = 1) -> str:
    """A JSON list, [value, low, high], as text."""
    return statistics.format_estimate(statistics.Estimate(*values), digits)
