"""Figure 3: accuracy of a trained model as it is made faster and faster.

Nothing is trained for the harsher rates: each method's weights (or one checkpoint for
all) are evaluated at one rate after another. DynamicViT's selectors then keep another
share than they were trained for.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments import intervals, paper_tables, published
from experiments.paper_tables import DENSE, Measured, TableRow, find_models, measure_row
from imagepiece_jax.common import plotting
from imagepiece_jax.common.statistics import format_difference, format_estimate
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.reduction.reduction import Reduction

RATES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


class Sweep(NamedTuple):
    """A method at harsher and harsher rates."""

    rows: tuple[TableRow, ...]  # the first with a model is measured
    rates: list[dict]


def keep_rates(*rates):
    return [{"keep_rate": rate} for rate in rates]


SWEEPS = {
    "ImagePiece": Sweep(
        (paper_tables.IMAGEPIECE, paper_tables.IMAGEPIECE_PATCH), keep_rates(*RATES)
    ),
    "EViT": Sweep((paper_tables.EVIT,), keep_rates(*RATES[1:], 0.27)),
    "DynamicViT": Sweep((paper_tables.DYNAMICVIT,), keep_rates(*RATES[1:])),
    "ToMe": Sweep((paper_tables.TOME,), [{"r": r} for r in (13, 16, 18, 20, 23, 25)]),
}

Curve = Mapping[str, Measured]  # by rate


def write_hyperspeed_page(paper):
    """Measure the curves, and write hyperspeed.md and two plots."""
    dense = find_models(paper, DENSE)
    curves = {}
    for sweep in SWEEPS.values():
        for row in sweep.rows:
            models = find_models(paper, row)
            if models:
                curve = measure_curve(paper, row, models, sweep.rates, dense)
                curves[curve_name(row, curve)] = curve
                break
    gmacs = {}
    for name, curve in curves.items():
        gmacs[name] = [point.facts["gmacs"] for point in curve.values()]
    level = None
    if dense:
        right = [paper.evaluate(*model).right.mean() for model in dense]
        level = float(100 * np.mean(right))
    means = [means_table(paper, curves, "gmacs", "GMACs an image", gmacs, level)]
    if paper.clock:
        ratios = {}
        for name, curve in curves.items():
            ratios[name] = [point.speed["ratio"] for point in curve.values()]
        axis = "times as fast as dense"
        means.append(means_table(paper, curves, "speed", axis, ratios, level))
    paper.write_page(
        "hyperspeed",
        "accuracy against speed",
        points_table(curves),
        *means,
        printed_table(),
        paper.facts({"trained for these rates": "none"}),
    )


def measure_curve(paper, row, models, rates, dense):
    """The models of a row, one a seed, at each rate."""
    curve = {}
    for rate in rates:
        at_rate = []
        for vit, reduction in models:
            method = dataclasses.replace(Reduction.read(reduction).method, **rate)
            at_rate.append((vit, Reduction(method)))
        ((field, value),) = rate.items()
        curve[f"{field}={value}"] = measure_row(paper, row, at_rate, dense)
    return curve


def curve_name(row, curve):
    first = next(iter(curve.values()))
    if first.facts["untrained_selectors"]:
        return f"{row.name} (untrained selectors)"
    return row.name


def points_table(curves):
    """Cost, speed and accuracy of every point."""
    lines = []
    for name, curve in curves.items():
        for rate, point in curve.items():
            line = [
                name,
                rate,
                f"{point.facts['gmacs']:.3f}",
                point.facts["tokens"],
                paper_tables.speed_cell(point.speed),
                format_estimate(point.accuracy),
                format_difference(point.difference),
            ]
            lines.append(line)
    head = ["method", "rate", "GMACs", paper_tables.TOKENS_LEFT, "x dense, measured"]
    return markdown_table([*head, "acc1, %", "to dense, points"], lines)


def mean_height(x, accuracy, low, high):
    """Mean of a piecewise linear curve over low..high, in the unit of `accuracy`.

    x, accuracy: [points], in any order of x; both ends lie inside its range.
    """
    order = np.argsort(x)
    x = np.asarray(x)[order]
    accuracy = np.asarray(accuracy)[order]
    inside = x[(x > low) & (x < high)]
    places = np.concatenate([[low], inside, [high]])
    heights = np.interp(places, x, accuracy)
    return float(np.trapezoid(heights, places) / (high - low))


def common_range(x):
    """The range of x that all curves share, (low, high); None: there is none."""
    low = max(map(min, x.values()))
    high = min(map(max, x.values()))
    return (low, high) if low < high else None


def means_table(paper, curves, axis, name, x, level):
    """A plot over one axis, and a table of mean accuracies over the common range.

    Their intervals are by bootstrap over images.

    axis: the end of the plot's file name
    name: the axis label
    x: of each curve's points
    level: accuracy of the dense model in percent; None: it is not measured
    """
    series = {}
    for method, curve in curves.items():
        accuracies = [point.accuracy for point in curve.values()]
        series[method] = list(zip(x[method], accuracies, strict=True))
    draw_speed_curves(paper.out / f"hyperspeed_{axis}.png", name, series, level)
    span = common_range(x) if len(x) > 1 else None
    if span is None:
        return ""
    lines = []
    for method, curve in curves.items():
        rights = [point.rights.mean(axis=0) for point in curve.values()]
        mean = estimate_range_mean(x[method], 100 * np.stack(rights), span)
        lines.append([method, format_estimate(mean)])
    low, high = span
    head = ["method", f"mean acc1 from {low:.3f} to {high:.3f} {name}, %"]
    return markdown_table(head, lines)


def draw_speed_curves(path, name, series, level):
    """A PNG of accuracy, {method: [(x, Estimate)]}; arguments as for `means_table`."""
    line = None if level is None else ("dense", level)
    plotting.draw_curves(path, name, "accuracy, %", series, level=line)


def estimate_range_mean(x, right, span):
    """Mean accuracy over a range, an Estimate.

    right: percent, [points, images]
    """

    def mean(index):
        accuracy = right[:, index].mean(axis=1)
        return mean_height(x, accuracy, *span)

    return intervals.bootstrap_statistic(mean, right.shape[1], repeats=500)


def printed_table():
    """Table of published figures at the one speed that the paper's text gives."""
    speed = published.HYPERSPEED["speed"]
    base, _ = published.ACCURACY_SPEED["deit_s"]["DeiT"]
    lines = []
    for name, drop in published.HYPERSPEED["drop"].items():
        accuracy = base - drop
        lines.append([name, f"-{drop:.2f}", f"{accuracy:.2f}"])
    table = markdown_table(["DeiT-S", "to dense, points", "acc1, %"], lines)
    return f"{published.LABEL}, at {speed} times DeiT-S's speed:\n\n{table}"
