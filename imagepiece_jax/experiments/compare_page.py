"""The page and README's table of a comparison, from its JSON; its plot: compare_plot.

A difference is called noise where its p, corrected by Holm's rule over all comparisons
of the page, is .05 or more.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import render

LEVEL = 0.05
CLOSE = 0.025  # of a share: what is farther away is named
NAMES = {"dense": "dense", "tome": "ToMe", "random": "random tokens"}
COSTS = {"gmacs": "MACs", "ms": "time"}
AHEAD, LEVELED, NO_BETTER = "↑", "≈", "°"
Report = Mapping[str, Any]


def dumps(report: Report) -> str:
    """The report as JSON, a line for each of its entries."""
    parts = []
    for name, value in report.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(f"  {json.dumps(line)}" for line in value) + "\n]"
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def page(report: Report, plot: str) -> str:
    """The page: the answer, the table, what is noise, then all that it stands on."""
    parts = [
        "# Which reduction, for this model, at this cost",
        _setting(report),
        "## The answer",
        "\n".join(f"- {sentence}" for sentence in answer(report)),
        _highest(report),
        f"![Accuracy by share of the dense cost]({plot})",
        "## The table",
        *table(report),
        "## What is noise",
        *noise(report),
        "## All settings",
        _all_settings(report),
        _not_compared(report),
        _origin(report),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _setting(report):
    """On what was measured, as a paragraph."""
    dense, count = report["dense"], report["dense"]["images"]
    cost, trained = COSTS[report["metric"]], report["trained_as"]
    how = "no weights were trained with a reduction"
    if trained != "none":
        how = (
            f"the weights were trained with `{trained}`, whose row alone is as trained"
        )
    accuracy = statistics.format_estimate(render.estimate(dense["acc1"]))
    return (
        f"`{report['weights']}`, {count:,} images of {report['images']['data']}; "
        f"{how}. Dense: {accuracy} % at {dense['gmacs']:.3f} GMACs. Each method stands "
        f"at the setting that is nearest in {cost} to a share of the dense model, "
        f"within {100 * report['tolerance']:g} % of it; its other fields are its "
        "defaults, those that it was published with. None of these images chose a "
        "setting."
    )


def answer(report: Report) -> list[str]:
    """What a reader wants to know, in four sentences."""
    highest = {}
    for share in reached(report):
        best, *others = _at(report, share)
        for line in (best, *others):
            if line["acc1"][0] == best["acc1"][0]:
                highest.setdefault(line["method"], []).append(share)
    return [
        _sentence(highest, "Highest accuracy", ""),
        _sentence(
            _where(report, "tome", lambda line: _verdict(line) > 0),
            "Ahead of ToMe at the same cost, beyond noise",
            "No method is ahead of ToMe at the same cost, beyond noise.",
        ),
        _sentence(
            _where(report, "dense", lambda line: _verdict(line) >= 0),
            "Not distinguishable from the dense model",
            "Every method loses to the dense model at every cost, beyond noise.",
        ),
        _sentence(
            _where(report, "random", lambda line: _verdict(line) <= 0),
            "Not distinguishable from random tokens of the same cost, or behind them",
            "Every method is better than random tokens of the same cost.",
        ),
    ]


def _where(report, to, holds):
    """{method: shares} of the comparisons with `to` of which `holds` is true."""
    found = {}
    for line in report["settings"]:
        compared = comparison(report, line["method"], line["share"], to)
        if compared is not None and holds(compared):
            found.setdefault(line["method"], []).append(line["share"])
    return found


def _sentence(found, some, none):
    listed = [f"`{name}` at {_joined(shares)}" for name, shares in found.items()]
    return f"{some}: {'; '.join(listed)}." if listed else none


def _joined(shares):
    return ", ".join(f"{share:g}" for share in shares)


def comparison(report: Report, method: str, share: float, to: str) -> dict | None:
    """Points that `method` has more than `to`, and their p; None where there is none.

    Of ToMe with random tokens that of random tokens with ToMe, turned.
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


def _verdict(line):
    """1 or -1 where a difference is no noise, else 0."""
    value = line["points"][0]
    return 0 if line["holm"] >= LEVEL else (value > 0) - (value < 0)


def _at(report, share):
    """Settings at this share, the highest accuracy first."""
    lines = [line for line in report["settings"] if line["share"] == share]
    return sorted(lines, key=lambda line: -line["acc1"][0])


def _highest(report):
    """Table of the highest accuracy at each share."""
    head = [f"share of the dense {COSTS[report['metric']]}", "highest", "setting"]
    head += ["acc1, %", "points to dense", "to ToMe", "to random tokens"]
    rows = []
    for share in report["shares"]:
        for line in _at(report, share)[:1]:
            rows.append([f"{share:g}", f"`{line['method']}`", _fields(line)])
            rows[-1] += _accuracies(report, line)
    return render.table(head, rows)


def _accuracies(report, line):
    """Cells: accuracy, and the differences to each of NAMES."""
    cells = [statistics.format_estimate(render.estimate(line["acc1"]))]
    for to in NAMES:
        compared = comparison(report, line["method"], line["share"], to)
        cells.append("" if compared is None else _difference(compared))
    return cells


def _difference(line):
    """ "-1.8 [-3.0, -0.6]", and a word where that is noise."""
    value, low, high = (f"{number:+.1f}" for number in line["points"])
    return f"{value} [{low}, {high}]" + ", noise" * (_verdict(line) == 0)


def _fields(line):
    return ", ".join(f"{k}={_typed(v)}" for k, v in line["setting"].items())


def _typed(value):
    """A value of a field as it is typed: JSON's lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


def table(report: Report) -> list[str]:
    """Methods by shares, and what its marks mean; the best on average comes first."""
    shares = report["shares"]
    best = {share: _at(report, share)[0]["acc1"][0] for share in reached(report)}
    lines = {(line["method"], line["share"]): line for line in report["settings"]}
    rows = [
        [f"`{method}`", *(_cell(report, lines.get((method, s)), best) for s in shares)]
        for method in order(report)
    ]
    cost = COSTS[report["metric"]]
    head = [f"share of the dense {cost}", *(f"{share:g}" for share in shares)]
    dense = f"{report['dense']['acc1'][0]:.1f}"
    text = render.table(head, rows)
    marks = {
        AHEAD: "ahead of ToMe",
        LEVELED: "not distinguishable from ToMe",
        NO_BETTER: "not distinguishable from random tokens, or behind them",
        "–": "no setting of this cost",
    }
    meant = [f"{mark}: {words}" for mark, words in marks.items() if mark in text]
    legend = (
        f"acc1 in % (points to the dense {dense}). Bold: the highest of its column"
        f"{''.join(f'; {each}' for each in meant)}."
    )
    return [text, " ".join([legend, *_left_out(report)])]


def order(report: Report) -> list[str]:
    """Methods by how far they are behind the highest accuracy, on average."""
    behind = {}
    for share in reached(report):
        at = _at(report, share)
        for line in at:
            lost = at[0]["acc1"][0] - line["acc1"][0]
            behind.setdefault(line["method"], []).append(lost)
    return sorted(behind, key=lambda name: sum(behind[name]) / len(behind[name]))


def reached(report: Report) -> list[float]:
    """The shares at which some method has a setting."""
    return [share for share in report["shares"] if _at(report, share)]


def _cell(report, line, best):
    if line is None:
        return "–"
    value = line["acc1"][0]
    text = f"**{value:.1f}**" if value == best[line["share"]] else f"{value:.1f}"
    change = comparison(report, line["method"], line["share"], "dense")
    text += f" ({change['points'][0]:+.1f})"
    tome = comparison(report, line["method"], line["share"], "tome")
    if tome is not None and _verdict(tome) >= 0:
        text += " " + (AHEAD if _verdict(tome) else LEVELED)
    random = comparison(report, line["method"], line["share"], "random")
    return text + NO_BETTER * (random is not None and _verdict(random) <= 0)


def _left_out(report):
    """A sentence for each reason without a figure."""
    reasons = {}
    for line in report["left_out"]:
        reasons.setdefault(line["reason"], []).append(f"`{line['method']}`")
    return [f"No figure: {', '.join(v)} ({k})." for k, v in reasons.items()]


def noise(report: Report) -> list[str]:
    """Paragraphs: which tests, how many of them, and from where on they tell apart."""
    lines = report["comparisons"]
    apart = [abs(line["points"][0]) for line in lines if _verdict(line)]
    level = [abs(line["points"][0]) for line in lines if not _verdict(line)]
    lost = [
        line
        for line in lines
        if not _verdict(line)
        and not statistics.is_noise(statistics.Estimate(*line["points"]))
    ]
    found = [
        f"All {len(lines)} comparisons of this page (each method with the dense model, "
        "ToMe and random tokens, at each share) are one family: exact McNemar tests on "
        f"the same images, corrected by Holm's rule at {100 * LEVEL:g} %. {len(apart)} "
        "differences are more than noise. Brackets are 95 % intervals of one "
        f"difference alone. {len(lost)} more of them leave zero out and yet are called "
        "noise: of so many some would by chance."
    ]
    if apart and level:
        found.append(
            f"The smallest difference that is no noise is {min(apart):.1f} points, the "
            f"largest that is noise {max(level):.1f}: how many images change sides "
            "decides, not the difference alone."
        )
    far = [
        f"`{line['method']}` at {line['share']:g} ({line['reached']:.3f})"
        for line in report["settings"]
        if abs(line["reached"] / line["share"] - 1) > CLOSE
    ]
    found.append(
        f"Costs are matched within {100 * CLOSE:g} %{' but for ' * bool(far)}"
        f"{', '.join(far)}: a few tenths of a point can be a difference in cost. "
        "Random tokens are one draw for each image: the intervals are over images, not "
        "over draws."
    )
    if report["metric"] == "gmacs":
        found.append(
            "MACs are those of the network's products. What matching and clustering "
            "cost is not in them, and is much for `atc`, `mctf`, `dpc_knn` and "
            "`token_pooling`: `--metric ms` compares by measured time."
        )
    return found


def _all_settings(report):
    """Table of every setting, by share and accuracy."""
    timed = report["timing"] is not None
    head = ["share", "method", "setting", "share reached", "GMACs", render.TOKENS_LEFT]
    head += ["acc1, %", *(f"points to {name}" for name in NAMES.values())]
    rows = []
    for line in itertools.chain(*(_at(report, share) for share in report["shares"])):
        reached = f"{line['reached']:.3f}"
        if timed:
            speed = line["speed"]
            low, high = 1 / speed["ratio_max"], 1 / speed["ratio_min"]
            reached += f" ({low:.3f} to {high:.3f})"
        row = [f"{line['share']:g}", f"`{line['method']}`", _fields(line), reached]
        row += [f"{line['gmacs']:.3f}", line["tokens"], *_accuracies(report, line)]
        rows.append(row)
    return render.table(head, rows)


def _not_compared(report):
    """Sentences on methods that are not there at some share."""
    found = {}
    for line in report["out_of_reach"]:
        found.setdefault(line["method"], []).append(line)
    parts = [
        f"`{method}` at {_joined(line['share'] for line in lines)} (nearest: "
        + ", ".join(dict.fromkeys(f"{line['reached']:.3f}" for line in lines))
        + ")"
        for method, lines in found.items()
    ]
    if parts:
        parts = [f"No setting has this cost: {'; '.join(parts)}."]
    return " ".join([*parts, *_left_out(report)])


def _origin(report):
    """Where the figures come from: command, versions and clock."""
    options = " --metric ms" if report["timing"] else ""
    text = (
        "Written from the JSON of `python -m imagepiece_jax.experiments compare "
        f"--weights FILE --data DATA{options}`, which has every setting, interval, p "
        "and which images were right."
    )
    if report["timing"]:
        timing = report["timing"]
        text += (
            f" Times: {timing['device']}, batches of {timing['batch_size']}, in turns "
            f"with the dense model, median of {timing['repeats']} turns, spread in "
            "brackets."
        )
    return text


def readme(report: Report) -> tuple[str, str, str]:
    """README's part: a line on the setting, the table, what its marks mean."""
    rows, legend = table(report)
    how = "Without any training" if report["trained_as"] == "none" else "Off the shelf"
    start = (
        f"{how}: `{report['weights']}`, {report['dense']['images']:,} images, all "
        "methods whose parameters it holds, at equal costs; dense "
        f"{report['dense']['gmacs']:.3f} GMACs"
    )
    return start, rows, legend
