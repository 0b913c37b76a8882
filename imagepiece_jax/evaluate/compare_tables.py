"""Tables and the plot of a comparison, from its JSON.

p is that of McNemar's test, corrected by Holm's rule over all comparisons of the JSON.
"""

import collections
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common import plotting
from imagepiece_jax.common.fields import as_tuple
from imagepiece_jax.common.files import (
    LOCK,
    check_own,
    make_folder,
    read_json,
    replace_file,
    write_json,
)
from imagepiece_jax.common.signals import finishing
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.evaluate import cache, statistics
from imagepiece_jax.evaluate.compare import RECOMMENDED, SMALLER
from imagepiece_jax.evaluate.statistics import Estimate

NAMES = {
    "dense": "dense",
    "tome": "ToMe",
    "random": "random tokens",
    "imagepiece": "ImagePiece",
}
COSTS = {"gmacs": "MACs", "ms": "time"}
LEVEL = -1.5  # points to dense; a setting whose interval lies above it counts as level
SIGNIFICANT = 0.05  # p below this is shown
Report = Mapping[str, Any]


FILES = ("compare.json", "compare.md", "compare.png")
FIELDS = ("weights", "images", "shares", "dense", "settings", "comparisons")


def check_folder(folder: str | os.PathLike):
    """Raise InputError for a folder that holds anything but comparisons, or nothing.

    compare.json has to be a Report. The page and the plot are ours beside one, or
    beside measured results, which are all that a killed command leaves.
    """
    folder = pathlib.Path(folder)
    data, *shown = FILES
    measured = cache.read_results(folder)
    reported = (folder / data).exists()  # by a file that is refused below, if not ours

    def ours(file):
        if file.name == data:
            return {*FIELDS} <= {*read_json(file)}
        if file.name in shown:
            return bool(measured or reported)
        return file.name in (cache.FILE, LOCK)

    check_own("folder", folder, "a comparison", ours)


def write(folder: str | os.PathLike, report: Report) -> str:
    """Write FILES, a report's data, page and plot, into a folder; return the page."""
    folder = pathlib.Path(folder)
    make_folder("folder", folder)
    data, tables, plot = FILES
    text = page(report, plot)
    with finishing():  # the files belong together
        write_json(folder / data, report)
        replace_file(folder / tables, text)
        draw_plot(folder / plot, report)
    return text


def page(report: Report, plot: str) -> str:
    """The page of the command: its tables and plot."""
    if report["shares"]:
        parts = [
            "# Accuracy at equal cost",
            _measured(report),
            table(report),
            f"![Accuracy by share of the dense cost]({plot})",
            settings_table(report),
        ]
        if report["left_out"]:
            parts.append(absent_table(report))
    else:
        parts = [
            "# Accuracy of a sweep",
            _measured(report),
            swept_table(report),
            f"![Accuracy by MACs]({plot})",
        ]
    parts.append(advice(report))
    return "\n\n".join(parts) + "\n"


def _measured(report):
    """Table of what was measured: weights, images, the dense model, the clock."""
    dense = report["dense"]
    columns = {"weights": f"`{report['weights']}`"}
    columns["trained with"] = report["trained_as"]
    columns["images"] = f"{dense['images']:,} of {report['images']['data']}"
    columns["crop"] = Preprocessing.from_json(report["images"]).text
    acc1 = statistics.format_estimate(Estimate(*dense["acc1"]))
    columns["dense acc1, %"] = acc1
    columns["dense GMACs"] = f"{dense['gmacs']:.3f}"
    timing = report["timing"]
    if timing:
        columns["timed on"] = timing["device"]
        columns["batch"] = timing["batch_size"]
        columns["repeats"] = timing["repeats"]
        if gelu := timing.get("gelu"):
            columns["GELU"] = gelu
    return markdown_table([*columns], [[*columns.values()]])


def advice(report: Report) -> str:
    """A line that names the cheapest setting that is level with the dense model.

    A setting is level where the 95 % interval of its points to dense lies above LEVEL.
    Of several level settings at one share the line names the recommended method, which
    takes the least time, or else the most accurate setting. Where no setting is level
    it names the most accurate of all. In a comparison by time smaller images are left
    out, because they are not timed.
    """
    found = []
    for line in report["settings"]:
        if line["speed"] is not None or not report["timing"]:
            change = comparison(report, line["method"], line["share"], "dense")
            found.append((line, Estimate(*change["points"])))
    images = f"{report['dense']['images']:,} images"
    if not found:
        return f"take the dense model: nothing else was measured on {images}"
    level = [pair for pair in found if pair[1].low > LEVEL]
    if level:
        line, change = min(level, key=_preference)
    else:
        line, change = max(found, key=lambda pair: pair[0]["acc1"][0])
    points = statistics.format_estimate(change, signs=True)
    cost = f"{line['reached']:.2f} of the dense {COSTS[report['metric']]}"
    setting = f"{_typed(line)}, {points} points to dense at {cost}"
    rule = f"interval lies above {LEVEL:g} points"
    if not level:
        return (
            f"take nothing yet: on {images} no setting is level with the dense model "
            f"(its {rule}); the most accurate is {setting}"
        )
    return f"take {setting}: the cheapest of those whose {rule} on {images}"


def _preference(pair):
    """Sort key of level settings: cost, then the recommended method, then accuracy."""
    line, _ = pair
    cost = line["share"]
    if cost is None:
        cost = line["reached"]
    return cost, line["method"] != RECOMMENDED, -line["acc1"][0]


def _typed(line):
    """A setting as `load` takes it: its reduction, or the fields of a dense model."""
    if is_smaller(line):
        return f"the dense model with {fields(line['setting'])}"
    return f"reduction={line['setting']['reduction']}"


def is_smaller(line: Mapping[str, Any]) -> bool:
    """Whether a setting is the dense model on smaller images."""
    return "image_size" in line["setting"]


def comparison(
    report: Report, method: str, share: float | None, to: str
) -> dict | None:
    """The comparison of `method` with `to` at a share; None where there is none.

    The settings of a sweep have no shares: their share is None.
    The report compares random tokens with ToMe. The comparison of ToMe with random
    tokens is that one with the signs of its points reversed.
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
    """Table of acc1 and points to dense: a row for each method, a column a share."""
    shares = report["shares"]
    lines = {(line["method"], line["share"]): line for line in report["settings"]}
    rows = []
    for method in order(report):
        cells = [_cell(report, lines.get((method, share))) for share in shares]
        rows.append([f"`{method}`", *cells])
    head = [f"share of the dense {COSTS[report['metric']]}"]
    head += [f"{share:g}" for share in shares]
    return markdown_table(head, rows)


def _cell(report, line):
    if line is None:
        return ""
    change = comparison(report, line["method"], line["share"], "dense")
    return f"{line['acc1'][0]:.1f} ({change['points'][0]:+.1f})"


def order(report: Report) -> list[str]:
    """Methods by their mean distance to the highest accuracy, the best first."""
    behind = collections.defaultdict(list)
    for share in shares_with_settings(report):
        lines = _settings_at(report, share)
        best = lines[0]["acc1"][0]
        for line in lines:
            behind[line["method"]].append(best - line["acc1"][0])
    means = {name: sum(points) / len(points) for name, points in behind.items()}
    return sorted(means, key=means.get)


def shares_with_settings(report: Report) -> list[float]:
    """The shares at which some method has a setting."""
    return [share for share in report["shares"] if _settings_at(report, share)]


def _settings_at(report, share):
    """The settings at a share, the most accurate first."""
    lines = [line for line in report["settings"] if line["share"] == share]
    return sorted(lines, key=lambda line: -line["acc1"][0])


def settings_table(report: Report) -> str:
    """Table of every setting, by share and accuracy."""
    head = ["share", "method", "setting"]
    if report["timing"]:
        head.append("share reached")
    head += ["GMACs", "tokens left, with class token", "acc1, %"]
    head.append("points to dense, p if < .05")
    head += [f"points to {name}" for kind, name in NAMES.items() if kind != "dense"]
    rows = []
    for share in report["shares"]:
        rows += [_settings_row(report, line) for line in _settings_at(report, share)]
    return markdown_table(head, rows)


def _settings_row(report, line):
    """The cells of a setting in `settings_table`."""
    row = [f"{line['share']:g}", _name(line), fields(line["setting"])]
    if report["timing"]:
        span = "by MACs"  # of smaller images, which are not timed
        speed = line["speed"]
        if speed:
            span = f"{1 / speed['ratio_max']:.3f} to {1 / speed['ratio_min']:.3f}"
        row.append(f"{line['reached']:.3f} ({span})")
    row.append(f"{line['gmacs']:.3f}")
    row.append(line["tokens"])
    row.append(statistics.format_estimate(Estimate(*line["acc1"])))
    for other in NAMES:
        change = comparison(report, line["method"], line["share"], other)
        cell = ""
        if change is not None:
            cell = difference(change)
        row.append(cell)
    return row


def _name(line):
    """The cell that names a setting, and says whether the weights were made for it."""
    name = f"`{line['method']}`"
    return f"{name} (recovered)" if line.get("recovered") else name


def swept_table(report: Report) -> str:
    """Table of the dense model and a sweep's settings, in the order of their names.

    Reductions are compared with the smaller images that are among the settings.
    """
    smaller = [line["method"] for line in report["settings"] if is_smaller(line)]
    head = ["setting", "acc1, %", "points to dense, p if < .05"]
    head += [f"to `{name}`" for name in smaller]
    head += ["acc5, %", "tokens, with class token", "GMACs", "share of the MACs"]
    dense = report["dense"]
    acc1 = statistics.format_estimate(Estimate(*dense["acc1"]))
    cost = [f"{dense['acc5']:.1f}", dense["tokens"], f"{dense['gmacs']:.3f}", "1.00"]
    rows = [["dense", acc1, "", *("" for _ in smaller), *cost]]
    for line in report["settings"]:
        change = comparison(report, line["method"], line["share"], "dense")
        name = _name(line)
        if line["untrained_selectors"]:
            name += " (untrained selectors)"
        row = [
            name,
            statistics.format_estimate(Estimate(*line["acc1"])),
            difference(change),
        ]
        for other in smaller:
            change = comparison(report, line["method"], line["share"], other)
            cell = ""
            if change is not None and not is_smaller(line):
                cell = difference(change)
            row.append(cell)
        row += [f"{line['acc5']:.1f}", line["tokens"], f"{line['gmacs']:.3f}"]
        row.append(f"{line['reached']:.2f}")
        rows.append(row)
    return markdown_table(head, rows)


def difference(line: Mapping[str, Any]) -> str:
    """A comparison as text, "-1.8 [-3.0, -0.6], p = .023"; p only if SIGNIFICANT."""
    text = statistics.format_estimate(Estimate(*line["points"]), signs=True)
    if line["holm"] < SIGNIFICANT:
        text += f", {p_value(line['holm'])}"
    return text


def p_value(p: float) -> str:
    """A p-value as text: "p = .023", "p < .001"."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def fields(setting: Mapping[str, Any]) -> str:
    """Fields of a setting as text: "keep_rate=0.9, merge_ratio=0.08"."""
    return ", ".join(f"{k}={as_tuple(v)}" for k, v in setting.items())


def absent_table(report: Report) -> str:
    """Table of the methods that have no setting at a share, or at all shares."""
    rows = []
    for line in report["left_out"]:
        rows.append([f"`{line['method']}`", line["share"] or "all", line["reason"]])
    return markdown_table(["not compared", "share", "why"], rows)


def draw_plot(path: str | os.PathLike, report: Report):
    """Write a PNG of accuracy by share of the cost, with a curve for each method.

    Bands are intervals of the paired difference to dense. A sweep is drawn by GMACs.
    """
    shares = shares_with_settings(report)
    curves = {}
    for name, lines in _curves(report).items():
        curves[name] = []
        for line in lines:
            curves[name].append((_cost(report, line), _acc1_band(report, line)))
    cost = "GMACs an image"
    if shares:
        cost = f"share of the dense model's {COSTS[report['metric']]}"
    plotting.draw_curves(
        path,
        cost,
        "acc1, % (95 %, paired difference to dense)",
        curves,
        level=("dense", report["dense"]["acc1"][0]),
        references=("tome", "random"),
        xticks=shares,
    )


def _curves(report):
    """{method: its settings by cost}, in the order of `order`; of a sweep, as named."""
    curves = {name: [] for name in order(report)}
    for line in sorted(report["settings"], key=lambda line: line["gmacs"]):
        name = line["method"]
        if not report["shares"]:  # a sweep's names are "METHOD FIELD=VALUE"
            name = SMALLER if is_smaller(line) else name.split()[0]
        curves.setdefault(name, []).append(line)
    return curves


def _cost(report, line):
    return line["share"] if report["shares"] else line["gmacs"]


def _acc1_band(report, line):
    """acc1, and the ends of a band around it, as wide as the interval to dense."""
    change = comparison(report, line["method"], line["share"], "dense")
    value, low, high = change["points"]
    acc1 = line["acc1"][0]
    return acc1, acc1 + low - value, acc1 + high - value
