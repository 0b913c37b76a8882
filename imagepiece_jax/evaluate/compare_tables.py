"""Tables and the plot of a comparison, from its JSON.

p is that of McNemar's test, corrected by Holm's rule over all comparisons of the JSON.
"""

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common import plotting
from imagepiece_jax.common.files import make_folder, replace_file, write_json
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data import valid_labels
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.compare import FLOORS, RECOMMENDED, controlled
from imagepiece_jax.evaluate.statistics import Estimate
from imagepiece_jax.reduction.settings import as_tuple

NAMES = {
    "dense": "dense",
    "tome": "ToMe",
    "random": "random tokens",
    "imagepiece": "ImagePiece",
}
COSTS = {"gmacs": "MACs", "ms": "time"}
LEVEL = -1.5  # points to dense from which on the rest is taken for no loss
SIGNIFICANT = 0.05  # p below it is shown
Report = Mapping[str, Any]


def write(folder: str | os.PathLike, report: Report) -> str:
    """Write compare.json, .md and .png into a folder; return the page, compare.md."""
    folder = pathlib.Path(folder)
    make_folder("--out", folder)
    text = page(report, plot="compare.png")
    write_json(folder / "compare.json", report)
    replace_file(folder / "compare.md", text)
    draw_plot(folder / "compare.png", report)
    return text


def page(report: Report, plot: str) -> str:
    """The page of the command: its tables and plot."""
    if not report["shares"]:
        parts = [_measured(report), swept_table(report), f"![Accuracy by MACs]({plot})"]
        return "\n\n".join(["# Accuracy of a sweep", *parts, advice(report)]) + "\n"
    parts = [
        "# Accuracy at equal cost",
        _measured(report),
        table(report),
        f"![Accuracy by share of the dense cost]({plot})",
        settings_table(report),
        absent_table(report),
        advice(report),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _measured(report):
    """Table of the measurement: weights, images, the dense model, the clock."""
    dense = report["dense"]
    head = ["weights", "trained with", "images", "among"]
    head += ["dense acc1, %", "dense GMACs"]
    row = [f"`{report['weights']}`", report["trained_as"]]
    row += [f"{dense['images']:,} of {report['images']['data']}"]
    row += [valid_labels.in_words(report["valid_labels"], report["num_classes"])]
    row += [statistics.format_estimate(Estimate(*dense["acc1"]))]
    row += [f"{dense['gmacs']:.3f}"]
    if report["timing"]:
        timing = report["timing"]
        head += ["timed on", "batch", "repeats"]
        row += [timing["device"], timing["batch_size"], timing["repeats"]]
    return markdown_table(head, [row])


def advice(report: Report) -> str:
    """One line on what to take: the cheapest setting level with the dense model.

    Level means that the 95 % interval of its points to dense ends above LEVEL. Of
    several at one share it is the recommended one, which costs the least time, or else
    the most accurate. Where none is level the line names the most accurate of all.
    Controls are left out, and by time the floors, which are not timed.
    """
    found = []
    for line in report["settings"]:
        timed = line["speed"] is not None or not report["timing"]
        if timed and not controlled(line["method"]):
            change = comparison(report, line["method"], line["share"], "dense")
            found.append((line, Estimate(*change["points"])))
    images = f"{report['dense']['images']:,} images"
    if not found:
        return f"take the dense model: nothing else was measured on {images}"
    level = [pair for pair in found if pair[1].low > LEVEL]
    if level:
        line, change = min(level, key=_place)
    else:
        line, change = max(found, key=lambda pair: pair[0]["acc1"][0])
    points = statistics.format_estimate(change, signs=True)
    cost = f"{line['reached']:.2f} of the dense {COSTS[report['metric']]}"
    setting = f"{_typed(line)}, {points} points to dense at {cost}"
    rule = f"whose interval ends above {LEVEL:g}"
    if not level:
        return (
            f"take nothing yet: on {images} no setting is level with the dense model, "
            f"{rule} points; the most accurate is {setting}"
        )
    return f"take {setting}: the cheapest of those {rule} points on {images}"


def _place(pair):
    """The order of settings that are level with the dense model."""
    line, _ = pair
    cost = line["reached"] if line["share"] is None else line["share"]
    return cost, line["method"] != RECOMMENDED, -line["acc1"][0]


def _typed(line):
    """A setting as `load` takes it: its reduction, or the fields of a dense model."""
    if line["method"] in FLOORS:
        return f"the dense model with {fields(line['setting'])}"
    name = line["reduction"]["name"]
    return f"reduction={json.dumps({'name': name, **line['setting']})}"


def comparison(report: Report, method: str, share: float, to: str) -> dict | None:
    """Points that `method` has more than `to`, and their p; None where there is none.

    ToMe's to random tokens is that of random tokens to ToMe, with the signs turned.
    """
    for line in report["comparisons"]:
        if line["share"] != share:
            continue
        if (line["method"], line["to"]) == (method, to):
            return line
        if (line["method"], line["to"]) == (to, method):
            value, low, high = line["points"]
            return {**line, "points": [0 - value, 0 - high, 0 - low]}  # 0, not -0
    return None


def table(report: Report) -> str:
    """acc1 and points to dense of the methods, by `order`, at each share."""
    shares = report["shares"]
    lines = {(line["method"], line["share"]): line for line in report["settings"]}
    rows = [
        [f"`{method}`", *(_cell(report, lines.get((method, s))) for s in shares)]
        for method in order(report)
    ]
    head = [f"share of the dense {COSTS[report['metric']]}"]
    return markdown_table([*head, *(f"{share:g}" for share in shares)], rows)


def _cell(report, line):
    if line is None:
        return ""
    change = comparison(report, line["method"], line["share"], "dense")
    return f"{line['acc1'][0]:.1f} ({change['points'][0]:+.1f})"


def order(report: Report) -> list[str]:
    """Methods by how far they are behind the highest accuracy, on average."""
    behind = collections.defaultdict(list)
    for share in reached(report):
        lines = _at(report, share)
        best = lines[0]["acc1"][0]
        for line in lines:
            behind[line["method"]].append(best - line["acc1"][0])
    return sorted(behind, key=lambda name: sum(behind[name]) / len(behind[name]))


def reached(report: Report) -> list[float]:
    """The shares at which some method has a setting."""
    return [share for share in report["shares"] if _at(report, share)]


def _at(report, share):
    """Settings at this share, the highest accuracy first."""
    lines = [line for line in report["settings"] if line["share"] == share]
    return sorted(lines, key=lambda line: -line["acc1"][0])


def settings_table(report: Report) -> str:
    """Table of every setting, by share and accuracy."""
    timed = ["share reached"] if report["timing"] else []
    head = ["share", "method", "setting", *timed, "GMACs"]
    head += ["tokens left, with class token", "acc1, %", "points to dense, p if < .05"]
    head += [f"points to {name}" for kind, name in NAMES.items() if kind != "dense"]
    rows = []
    for line in itertools.chain(*(_at(report, share) for share in report["shares"])):
        row = [f"{line['share']:g}", f"`{line['method']}`", fields(line["setting"])]
        if timed:
            span = "by MACs"  # of a floor, which is not timed
            if speed := line["speed"]:
                span = f"{1 / speed['ratio_max']:.3f} to {1 / speed['ratio_min']:.3f}"
            row.append(f"{line['reached']:.3f} ({span})")
        row += [f"{line['gmacs']:.3f}", line["tokens"]]
        row += [statistics.format_estimate(Estimate(*line["acc1"]))]
        for to in NAMES:
            change = comparison(report, line["method"], line["share"], to)
            row.append("" if change is None else difference(change))
        rows.append(row)
    return markdown_table(head, rows)


def swept_table(report: Report) -> str:
    """Table of a sweep's settings, in the order in which they were named."""
    head = ["setting", "acc1, %", "points to dense, p if < .05", "acc5, %"]
    head += ["tokens, with class token", "GMACs"]
    rows = []
    for line in report["settings"]:
        change = comparison(report, line["method"], None, "dense")
        untrained = " (untrained selectors)" * line["untrained_selectors"]
        row = [f"`{line['method']}`{untrained}"]
        row += [statistics.format_estimate(Estimate(*line["acc1"])), difference(change)]
        row += [f"{line['acc5']:.1f}", line["tokens"], f"{line['gmacs']:.3f}"]
        rows.append(row)
    return markdown_table(head, rows)


def difference(line: Mapping[str, Any]) -> str:
    """ "-1.8 [-3.0, -0.6], p = .023", of a comparison; p is left out from .05 on."""
    p = f", {p_value(line['holm'])}" if line["holm"] < SIGNIFICANT else ""
    return statistics.format_estimate(Estimate(*line["points"]), signs=True) + p


def p_value(p: float) -> str:
    """ "p = .023", "p < .001"."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def fields(setting: Mapping[str, Any]) -> str:
    """ "keep_rate=0.9, merge_ratio=0.08"."""
    return ", ".join(f"{k}={as_tuple(v)}" for k, v in setting.items())


def absent_table(report: Report) -> str:
    """Table of methods without a setting at a share, or at any: `left_out`.

    Empty where everything has one.
    """
    absent = report["left_out"]
    if not absent:
        return ""
    rows = [
        [f"`{line['method']}`", line["share"] or "all", line["reason"]]
        for line in absent
    ]
    return markdown_table(["not compared", "share", "why"], rows)


def draw_plot(path: str | os.PathLike, report: Report):
    """Write a PNG: accuracy by share of the cost, a curve per method, the best first.

    Bands are intervals of the paired difference to dense. A sweep is drawn by GMACs.
    """
    shares = reached(report)
    curves = {
        name: [(_cost(report, line), _around(report, line)) for line in lines]
        for name, lines in _curves(report).items()
    }
    cost = f"share of the dense model's {COSTS[report['metric']]}"
    plotting.draw_curves(
        path,
        cost if shares else "GMACs an image",
        "acc1, % (95 %, paired difference to dense)",
        curves,
        level=("dense", report["dense"]["acc1"][0]),
        references=("tome", "random"),
        xticks=shares,
    )


def _curves(report):
    """The settings of each method, by `order`, or as a sweep names them."""
    curves = {name: [] for name in order(report)}
    for line in sorted(report["settings"], key=lambda line: line["gmacs"]):
        name = line["method"] if report["shares"] else line["method"].split()[0]
        curves.setdefault(name, []).append(line)
    return curves


def _cost(report, line):
    return line["share"] if report["shares"] else line["gmacs"]


def _around(report, line):
    """The accuracy, and the ends of the interval of its difference to dense from it."""
    change = comparison(report, line["method"], line["share"], "dense")
    value, low, high = change["points"]
    acc1 = line["acc1"][0]
    return acc1, acc1 + low - value, acc1 + high - value
