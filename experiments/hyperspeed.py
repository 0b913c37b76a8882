"""Figure 3: accuracy of a trained model as it is made faster and faster.

Nothing is trained for the harsher rates: each method's weights (or one checkpoint for
all) are evaluated at one rate after another. DynamicViT's selectors then keep another
share than they were trained for.
"""

import numpy as np

from experiments import intervals, published, render, tables
from experiments.rows import DENSE, find
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
    base = [context.evaluate(*model) for model in find(context, DENSE)]
    curves = {}
    for rows, rates in SWEEPS.values():
        candidates = ((row.name, find(context, row)) for row in rows)
        name, models = next((pair for pair in candidates if pair[1]), ("", []))
        if models:
            curve = [_point(context, models, rate, base) for rate in rates]
            name += " (untrained selectors)" * curve[0]["untrained"]
            curves[name] = curve
    parts = [_table(curves), _areas(curves, "gmacs", "GMACs")]
    by_cost = {name: [(p["gmacs"], p["acc1"]) for p in c] for name, c in curves.items()}
    path = context.out / "hyperspeed_gmacs.png"
    render.curves(path, "GMACs an image", "accuracy, %", by_cost)
    if context.settings.speed:
        by_speed = {n: [(p["ratio"], p["acc1"]) for p in c] for n, c in curves.items()}
        path = context.out / "hyperspeed_speed.png"
        render.curves(path, "times as fast as dense", "accuracy, %", by_speed)
        parts.append(_areas(curves, "ratio", "times as fast as dense"))
    parts += [_printed(), render.facts(context, {"trained for these rates": "none"})]
    render.page(context, "hyperspeed", "accuracy against speed", *parts)


def _point(context, models, rate, base):
    """One point of a curve: the models, one a seed, at this rate."""
    models = [(pretrained, reduction | rate) for pretrained, reduction in models]
    results = [context.evaluate(*model) for model in models]
    rights = [each.right for each in results]
    speed = context.speed(*models[0])
    dense = [base[min(i, len(base) - 1)].right for i in range(len(rights)) if base]
    return {
        "rate": ", ".join(f"{k}={v}" for k, v in rate.items()),
        "right": np.mean(rights, axis=0),  # [images], over seeds
        "acc1": intervals.accuracy(rights),
        "difference": intervals.difference(rights, dense) if base else None,
        "gmacs": results[0]["gmacs"],
        "tokens": results[0]["tokens"],
        "untrained": results[0]["untrained_selectors"],
        "speed": speed,
        "ratio": speed["ratio"] if speed else None,
    }


def _table(curves):
    lines = []
    for name, curve in curves.items():
        for point in curve:
            line = [name, point["rate"], f"{point['gmacs']:.3f}", point["tokens"]]
            line += [render.speed_cell(point["speed"]), format_estimate(point["acc1"])]
            lines.append([*line, format_difference(point["difference"])])
    head = ["method", "rate", "GMACs", render.TOKENS_LEFT, "x dense, measured"]
    return render.table([*head, "acc1, %", "to dense, points"], lines)


def area(x, accuracy, low: float, high: float) -> float:
    """Mean of a piecewise linear curve over low..high, in the unit of `accuracy`.

    x, accuracy: [points], in any order of x; both ends lie inside its range.
    """
    order = np.argsort(x)
    x, accuracy = np.asarray(x)[order], np.asarray(accuracy)[order]
    inside = x[(x > low) & (x < high)]
    at = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(at, x, accuracy), at) / (high - low))


def common_range(curves: dict, axis: str) -> tuple[float, float] | None:
    """Where all curves are defined: (low, high), None where nowhere."""
    low = max(min(point[axis] for point in curve) for curve in curves.values())
    high = min(max(point[axis] for point in curve) for curve in curves.values())
    return (low, high) if low < high else None


def _areas(curves, axis, name):
    """Table of the mean accuracy over the common range, by bootstrap over images."""
    span = common_range(curves, axis) if len(curves) > 1 else None
    if span is None:
        return ""
    lines = []
    for method, curve in curves.items():
        x = [point[axis] for point in curve]
        rights = np.stack([point["right"] for point in curve])

        def mean(index, x=x, rights=rights):
            return area(x, 100 * rights[:, index].mean(axis=1), *span)

        mean_accuracy = intervals.bootstrap(mean, rights.shape[1], repeats=500)
        lines.append([method, format_estimate(mean_accuracy)])
    head = ["method", f"mean acc1 from {span[0]:.3f} to {span[1]:.3f} {name}, %"]
    return render.table(head, lines)


def _printed():
    """The one speed that the paper's text gives figures for."""
    speed, base = published.HYPERSPEED["speed"], 79.83
    drops = published.HYPERSPEED["drop"].items()
    lines = [[name, f"-{drop:.2f}", f"{base - drop:.2f}"] for name, drop in drops]
    text = render.table(["DeiT-S", "to dense, points", "acc1, %"], lines)
    return f"{published.LABEL}, at {speed} times DeiT-S's speed:\n\n{text}"
