"""Accuracy and cost of one checkpoint under several reductions: rows, table, plot.

reduction/sweep_text.py reads them from the text of --sweep.

Every reduction is evaluated on the same images, so differences to the dense model are
paired. Speeds are for `benchmark`, where models take turns: one after the other, on a
machine that has other work, they would not compare.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imagepiece_jax.common import parallel, plotting
from imagepiece_jax.common.files import make_folder, replace_file
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import accuracy, statistics
from imagepiece_jax.evaluate.statistics import Estimate
from imagepiece_jax.pretrained.load import Weights
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.settings import DENSE
from imagepiece_jax.reduction.sweep_text import naming

HEAD = ["setting", "acc1, %", "to dense, points (paired)", "acc5, %", "tokens", "GMACs"]


def run(
    weights: Weights,
    reductions: Sequence[Mapping[str, Any]],
    batches: Callable[[], Iterable[Mapping[str, Any]]],
    folder: str | os.PathLike,
    facts: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Evaluate weights under the dense model and every reduction; print and write it.

    batches: makes the batches of a pass over the images
    folder: gets sweep.jsonl, a row as soon as it is measured, sweep.md and sweep.png
    facts: about weights and images, as JSON values, for each row
    Returns the rows.
    Raises InputError, before anything is measured, for a reduction that does not fit.
    """
    usual = settings.completed(DENSE)
    reductions = [DENSE, *(r for r in reductions if settings.completed(r) != usual)]
    for reduction in reductions:
        with naming(reduction):  # every mistake before the first evaluation
            weights.model(reduction)
    folder = pathlib.Path(folder)
    make_folder("--out", folder)
    rows, dense = [], None
    for reduction in reductions:
        vit = weights.pretrained(reduction)
        row, right = _measure(vit, weights.seed, batches())
        change = Estimate(0.0, 0.0, 0.0)  # the dense model's to itself
        if dense is None:
            dense = right
        else:
            change = statistics.paired_difference(right, dense)
        rows.append(
            {
                "setting": settings.label(reduction),
                "reduction": dict(reduction),
                **row,
                **_estimate("difference", change),
                **(facts or {}),
            }
        )
        lines = "".join(json.dumps(r) + "\n" for r in rows)
        replace_file(folder / "sweep.jsonl", lines)
        print(_line(rows[-1]), flush=True)
    replace_file(folder / "sweep.md", table(rows))
    points = [
        (_name(r).split()[0], r["gmacs"], r["acc1"], _read("acc1", r).half_width)
        for r in rows
    ]
    plotting.accuracy_plot(folder / "sweep.png", points)
    print(f"rows, table and plot: {folder}/sweep.jsonl, .md, .png")
    return rows


def _measure(vit, seed, batches):
    """(row of figures, whether each image was classified right: [images] bool)."""
    step = accuracy.model_step(vit.model, seed)
    variables = parallel.replicate(vit.variables)
    result = accuracy.evaluate(step, variables, batches)
    right = result.each["right"]
    row = {
        "untrained": vit.untrained,
        **_estimate("acc1", statistics.accuracy(right)),
        "acc5": result.acc5,
        "loss": result.loss,
        "images": result.images,
        "tokens": vit.model.plan[-1].mlp_tokens,
        "gmacs": vit.gmacs,
    }
    return row, right


def _estimate(name, estimate):
    """Fields of a row: the figure, and the ends of its interval."""
    value, low, high = map(float, estimate)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _read(name, row):
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _name(row):
    return row["setting"] + " (untrained selectors)" * row["untrained"]


def _cells(row):
    change = statistics.format_difference(_read("difference", row))
    return [
        _name(row),
        statistics.format_estimate(_read("acc1", row)),
        "" if row["setting"] == settings.label(DENSE) else change,
        f"{row['acc5']:.1f}",
        str(row["tokens"]),
        f"{row['gmacs']:.3f}",
    ]


def _line(row):
    name, acc1, change, _, tokens, gmacs = _cells(row)
    change = change and f"to dense {change}, "
    return f"{name}: acc1 {acc1} %, {change}{tokens} tokens, {gmacs} GMACs"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = markdown_table(HEAD, map(_cells, rows))
    note = f"Brackets are 95 % intervals, {rows[0]['images']} images; tokens with the "
    return "\n".join(lines) + f"\n\n{note}class token.\n"
