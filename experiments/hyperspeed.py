"""Figure 3: accuracy of a trained model as it is made faster and faster.

Nothing is trained for the harsher rates: each method's weights (or one checkpoint for
all) are evaluated at one rate after another. DynamicViT's selectors then keep another
share than they were trained for.
"""

import numpy as np

from experiments import intervals, published, render, tables
from experiments.rows import DENSE, find, measure_row
from imagepiece_jax.common import plotting
from imagepiece_jax.evaluate.statistics import format_difference, format_estimate

RATES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
# Method -> rows that may be trained, the first that is there; its rates.
SWEEPS = {
    "ImagePiece": (
        (tables.IMAGEPIECE, tables.IMAGEPIECE_PATCH),
        [{"keep_rate": rate} for rate in RATES],
    ),
    "EViT": ((tables.EVIT,), [{"keep_rate": r} for r in (*RATES[1:], 0.27)]),
    "DynamicViT": ((tables.DYNAMICVIT,), [{"keep_rate": r} for r in RATES[1:]]),
    "ToMe": ((tables.TOME,), [{"r": r} for r in (13, 16, 18, 20, 23, 25)]),
}


def hyperspeed(context):
    """Measure the curves, and write hyperspeed.md and two plots."""
    dense = find(context, DENSE)
    curves = {}
    for rows, rates in SWEEPS.values():
        candidates = ((row, find(context, row)) for row in rows)
        row, models = next((pair for pair in candidates if pair[1]), (None, []))
        if models:
            curve = _curve(context, row, models, rates, dense)
            name = row.name
            if next(iter(curve.values())).facts["untrained_selectors"]:
                name += " (untrained selectors)"
            curves[name] = curve
    parts = [_table(curves)]
    gmacs = {name: [p.facts["gmacs"] for p in c.values()] for name, c in curves.items()}
    parts.append(_areas(context, curves, "gmacs", "GMACs an image", gmacs))
    if context.settings.speed:
        ratio = {n: [p.speed["ratio"] for p in c.values()] for n, c in curves.items()}
        parts.append(_areas(context, curves, "speed", "times as fast as dense", ratio))
    parts += [_printed(), render.facts(context, {"trained for these rates": "none"})]
    render.page(context, "hyperspeed", "accuracy against speed", *parts)


def _curve(context, row, models, rates, dense):
    """{rate: the models of a row, one a seed, measured at it}."""
    curve = {}
    for rate in rates:
        at_rate = [(pretrained, reduction | rate) for pretrained, reduction in models]
        text = ", ".join(f"{k}={v}" for k, v in rate.items())
        curve[text] = measure_row(context, row, at_rate, dense)
    return curve


def _table(curves):
    lines = []
    for name, curve in curves.items():
        for rate, point in curve.items():
            line = [name, rate, f"{point.facts['gmacs']:.3f}", point.facts["tokens"]]
            line += [render.speed_cell(point.speed), format_estimate(point.accuracy)]
            lines.append([*line, format_difference(point.difference)])
    head = ["method", "rate", "GMACs", render.TOKENS_LEFT, "x dense, measured"]
    return render.table([*head, "acc1, %", "to dense, points"], lines)


def area(x, accuracy, low: float, high: float) -> float:
    """Mean of a piecewise linear curve over low..high, in the unit of `accuracy`.

    x, accuracy: [points], in any order of x; both ends lie inside its range.
    """
    order = np.argsort(x)
    x = np.asarray(x)[order]
    accuracy = np.asarray(accuracy)[order]
    inside = x[(x > low) & (x < high)]
    at = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(at, x, accuracy), at) / (high - low))


def common_range(x: dict[str, list[float]]) -> tuple[float, float] | None:
    """Where all curves are defined, by their points' x: (low, high), None: nowhere."""
    low = max(map(min, x.values()))
    high = min(map(max, x.values()))
    return (low, high) if low < high else None


def _areas(context, curves, axis, name, x):
    """A plot over one axis, and a table of the means over the common range.

    Their intervals are by bootstrap over images.
    """
    series = {
        method: [*zip(x[method], (p.accuracy for p in curve.values()), strict=True)]
        for method, curve in curves.items()
    }
    path = context.out / f"hyperspeed_{axis}.png"
    plotting.draw_curves(path, name, "accuracy, %", series)
    span = common_range(x) if len(x) > 1 else None
    if span is None:
        return ""
    lines = []
    for method, curve in curves.items():
        rights = np.stack([point.rights.mean(axis=0) for point in curve.values()])

        def mean(index, x=x[method], rights=rights):
            return area(x, 100 * rights[:, index].mean(axis=1), *span)

        mean_accuracy = intervals.bootstrap(mean, rights.shape[1], repeats=500)
        lines.append([method, format_estimate(mean_accuracy)])
    head = ["method", f"mean acc1 from {span[0]:.3f} to {span[1]:.3f} {name}, %"]
    return render.table(head, lines)


def _printed():
    """The one speed that the paper's text gives figures for."""
    speed = published.HYPERSPEED["speed"]
    base, _ = published.ACCURACY_SPEED["deit_s"]["DeiT"]
    drops = published.HYPERSPEED["drop"].items()
    lines = [[name, f"-{drop:.2f}", f"{base - drop:.2f}"] for name, drop in drops]
    text = render.table(["DeiT-S", "to dense, points", "acc1, %"], lines)
    return f"{published.LABEL}, at {speed} times DeiT-S's speed:\n\n{text}"
