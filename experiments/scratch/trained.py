"""Tables of what else the declared systems do: other rates, masks, what is merged.

Described, not tested: figures are means over seeds, brackets Student's 95 % intervals
over seeds, for these test images. results: all runs, by seed; plan: theirs.
"""

import functools

from experiments import published, render
from imagepiece_jax.evaluate import statistics


def rates_table(results: list[dict], plan: dict) -> str:
    """Accuracy at harsher keep rates than a system was trained at, without training."""
    return _accuracies(results, plan, "harsher", "keep {}")


def masks_table(results: list[dict], plan: dict) -> str:
    """Accuracy behind random masks of one patch (the paper's table 4)."""
    return _accuracies(results, plan, "masked", "{} masks")


def _accuracies(results, plan, field, title):
    """Accuracy as trained, and of each entry of a field; systems that have some."""
    lines, entries = [], ()
    for label, runs in _systems(results, plan, field):
        entries = list(runs[0][field])
        each = [[run["acc1"] for run in runs]]
        each += [[run[field][entry]["acc1"] for run in runs] for entry in entries]
        lines.append([label, *(_mean(accuracies, 1) for accuracies in each)])
    head = ["acc1, %", "as trained", *(title.format(entry) for entry in entries)]
    return render.table(head, lines)


def merges_table(results: list[dict], plan: dict) -> str:
    """What ImagePiece merges (the paper's tables 5, 6 and 8), by stem."""
    systems = dict(_systems(results, plan, "merges"))
    lines = []
    for label, path, digits, theirs in _measures():
        line = [label, *("" if value is None else str(value) for value in theirs)]
        for runs in systems.values():
            values = [functools.reduce(dict.get, path, run["merges"]) for run in runs]
            line.append(_mean([value for value, _, _ in values], digits))
        lines.append(line)
    head = ["", *(f"{s} stem, DeiT-S ({published.LABEL})" for s in ("conv", "patch"))]
    return render.table([*head, *systems], lines)


def _measures():
    """(label, where it is, digits, published with either stem) of each measure."""
    for block, theirs in published.REASSESS.items():
        label = f"merged tokens that count as attentive in layer {block + 1}, %"
        yield label, ("reassess", str(block), "own"), 1, (theirs, None)
    first, last = published.SIMILARITY["ImagePiece"]
    patch = published.LCB_SIMILARITY["patch"]
    lowest = "similarity of merged pairs, lowest 1 % of images"
    yield f"{lowest}, first merge", ("similarity", "lowest first"), 3, (first, patch)
    yield f"{lowest}, last merge", ("similarity", "lowest last"), 3, (last, None)
    at, every = "lcb-similarity", "similarity at the first merge, all images: of "
    yield f"{every}merged pairs", (at, "pairs"), 3, (None, None)
    yield f"{every}all pairs of candidates", (at, "candidates"), 3, (None, None)
    yield "distance of these merged pairs, patches", (at, "distance"), 2, (None, None)


def _mean(values, digits):
    return statistics.format_estimate(statistics.student(values), digits)


def _systems(results, plan, field):
    """(title, runs) of each system that `field` was measured of."""
    for each in plan["systems"]:
        runs = [run for run in results if run["system"] == each["name"]]
        if any(run[field] for run in runs):
            yield each["title"], runs
