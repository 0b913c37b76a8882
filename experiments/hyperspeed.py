"""Figure 3: accuracy of a trained model as it is made faster and faster.

Nothing is trained for the harsher rates: each method's weights (or one checkpoint for
all) are evaluated at one rate after another. DynamicViT's selectors then keep another
share than they were trained for.
"""

import dataclasses

import numpy as np

from experiments import intervals, paper_tables, published
from experiments.paper_tables import DENSE, find_models, measure_row
from imagepiece_jax.common import plotting
from imagepiece_jax.common.statistics import format_difference, format_estimate
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.reduction.reduction import Reduction

RATES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
IMAGEPIECE_ROWS = (paper_tables.IMAGEPIECE, paper_tables.IMAGEPIECE_PATCH)
# {method: (rows, of which the first with a model is measured, field, its values)}
SWEEPS = {
    "ImagePiece": (IMAGEPIECE_ROWS, "keep_rate", RATES),
    "EViT": ((paper_tables.EVIT,), "keep_rate", (*RATES[1:], 0.27)),
    "DynamicViT": ((paper_tables.DYNAMICVIT,), "keep_rate", RATES[1:]),
    "ToMe": ((paper_tables.TOME,), "r", (13, 16, 18, 20, 23, 25)),
}


def write_hyperspeed_page(study):
    """Measure the curves, and write hyperspeed.md and two plots."""
    dense = find_models(study, DENSE)
    curves = {}  # {method: {rate: Measured}}
    for rows, field, values in SWEEPS.values():
        for row in [row for row in rows if find_models(study, row)][:1]:
            curve = {}
            for value in values:
                rate = {field: value}
                curve[f"{field}={value}"] = measure_at_rate(study, row, rate, dense)
            first, *_ = curve.values()
            end = " (untrained selectors)" if first.facts["untrained_selectors"] else ""
            curves[f"{row.name}{end}"] = curve
    level = None
    if dense:
        right = [study.evaluate(*model).right.mean() for model in dense]
        level = float(100 * np.mean(right))
    gmacs = {}
    ratios = {}
    for name, curve in curves.items():
        gmacs[name] = [point.facts["gmacs"] for point in curve.values()]
        if study.clock:
            ratios[name] = [point.speed["ratio"] for point in curve.values()]
    means = [means_table(study, curves, "gmacs", "GMACs an image", gmacs, level)]
    if study.clock:
        axis = "times as fast as dense"
        means.append(means_table(study, curves, "speed", axis, ratios, level))
    study.write_page(
        "hyperspeed",
        "accuracy against speed",
        points_table(curves),
        *means,
        printed_table(),
        study.facts({"trained for these rates": "none"}),
    )


def measure_at_rate(study, row, rate, dense):
    """The models of a row, one a seed, with another field of their method."""
    at_rate = []
    for vit, reduction in find_models(study, row):
        method = dataclasses.replace(Reduction.read(reduction).method, **rate)
        at_rate.append((vit, Reduction(method)))
    return measure_row(study, row, at_rate, dense)


def points_table(curves):
    """Cost, speed and accuracy of every point."""
    lines = []
    for name, curve in curves.items():
        for rate, point in curve.items():
            line = [name, rate, f"{point.facts['gmacs']:.3f}", point.facts["tokens"]]
            line.append(paper_tables.speed_cell(point.speed))
            line.append(format_estimate(point.accuracy))
            lines.append([*line, format_difference(point.difference)])
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


def means_table(study, curves, axis, name, x, level):
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
    line = None if level is None else ("dense", level)
    path = study.out / f"hyperspeed_{axis}.png"
    plotting.draw_curves(path, name, "accuracy, %", series, level=line)
    # All curves share this range.
    low = max(map(min, x.values()), default=0)
    high = min(map(max, x.values()), default=0)
    if len(x) < 2 or low >= high:
        return ""
    lines = []
    for method, curve in curves.items():
        rights = [point.rights.mean(axis=0) for point in curve.values()]
        mean = estimate_range_mean(x[method], 100 * np.stack(rights), low, high)
        lines.append([method, format_estimate(mean)])
    head = ["method", f"mean acc1 from {low:.3f} to {high:.3f} {name}, %"]
    return markdown_table(head, lines)


def estimate_range_mean(x, right, low, high):
    """Mean accuracy over low..high, an Estimate; right: percent, [points, images]."""

    def mean(index):
        return mean_height(x, right[:, index].mean(axis=1), low, high)

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
