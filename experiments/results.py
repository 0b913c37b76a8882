"""The tables of docs, between their marks.

python -m experiments.results

A table stands between the lines "<!-- table NAME -->" and "<!-- /table -->". Most are
made from the rows of docs/tables/results.json (`experiments.records`), the others from
the points of the experiments that are over (`parts`, `retokenization`,
`trained_schedules`) and from published figures (`schedule`).
"""

import re
from collections.abc import Mapping

import numpy as np

from experiments import (
    intervals,
    parts,
    records,
    recover,
    render,
    retokenization,
    schedule,
    study,
)
from experiments import trained_schedules as trained
from experiments.records import MethodResult, Results
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.evaluate import compare, compare_tables, statistics
from imagepiece_jax.evaluate.statistics import Estimate, format_estimate

ROOT = records.ROOT
PAGES = (
    *("README.md", "docs/comparison.md", "docs/imagepiece.md"),
    *("docs/tables/bundles.md", "docs/tables/settings.md", "docs/tables/imagepiece.md"),
    *("docs/tables/retokenization/README.md", "docs/tables/parts/parts.md"),
    "docs/tables/trained_schedules/README.md",
)
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

KINDS = ("merge", "drop", "random", "tome")  # ImagePiece, and what it is tested by


def path_of_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """ImagePiece and its controls in the comparison, by share and kind."""
    kinds = {f"imagepiece {kind} {compare.CONTROL}": kind for kind in KINDS[1:]}
    kinds["imagepiece"] = KINDS[0]
    return _by_share(records.compared(results)[1], lambda row: kinds.get(row.method))


def fixed_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """The same with merge ratio .08 at every share."""
    return _by_share(results.of("controls"), lambda row: row.setting.get("inattentive"))


def _by_share(rows, kind_of):
    by_share = {}
    for row in sorted(rows, key=lambda row: -row.share):
        if kind := kind_of(row):
            by_share.setdefault(row.share, {})[kind] = row
    return by_share


def controls_table(
    results: Results, at: Mapping[float, Mapping[str, MethodResult]]
) -> str:
    """ImagePiece beside its controls of the same token counts, and EViT.

    The last row has the means over the shares; their intervals are paired by image.
    """
    evit = {
        row.share: row for row in records.compared(results)[1] if row.method == "evit"
    }
    contrasts = [("merge", kind) for kind in (*KINDS[1:], "evit")] + [("drop", "evit")]
    rows = []
    right = {kind: [] for kind in (*KINDS, "evit")}
    for share, variants in at.items():
        rows_of = {**variants, "evit": evit[share]}
        for kind, each in right.items():
            images = results.sources[rows_of[kind].source].images
            each.append(rows_of[kind].bits(images))
        setting = {"merge_ratio": 0.08, **rows_of["merge"].setting}
        line = [f"{share:g}", f"{setting['keep_rate']:g}, {setting['merge_ratio']:g}"]
        line += [f"{rows_of[kind].acc1[0]:.1f}" for kind in ("merge", "drop", "evit")]
        rows.append(line)
        for one, other in contrasts:
            change = statistics.paired_difference(right[one][-1], right[other][-1])
            line.append(format_estimate(change, signs=True))
    line = ["mean", ""]
    line += [f"{100 * np.mean(right[kind]):.1f}" for kind in ("merge", "drop", "evit")]
    for one, other in contrasts:
        change = intervals.mean(mean_points(right[one], right[other]))
        line.append(format_estimate(change, signs=True))
    head = ["share of the dense MACs", "keep, merge", "ImagePiece", "dropping", "EViT"]
    head += ["ImagePiece - dropping", "ImagePiece - random pairs"]
    head += ["ImagePiece - ToMe's matching", "ImagePiece - EViT", "dropping - EViT"]
    return render.table(head, [*rows, line])


def mean_points(right, base) -> np.ndarray:
    """Points of each image, the mean over the shares. bool [shares, images] twice."""
    return 100 * (np.asarray(right, float) - np.asarray(base)).mean(axis=0)


def _change(row, to):
    change = (row.differences or {}).get(to)
    return format_estimate(change and Estimate(*change), signs=True)


def scratch_table(results: Results, study: str) -> str:
    """Models trained from random weights with their reduction."""
    rows = results.of(study)
    bases = sorted(set().union(*(row.differences or () for row in rows)))
    lines = [
        [row.method, f"{row.gmacs:.5f}", row.tokens, render.interval(row.acc1)]
        + [" ".join(f"{part:.1f}" for part in row.parts)]
        + [_change(row, base) for base in bases]
        for row in rows
    ]
    head = ["system", "GMACs", render.TOKENS_LEFT, "acc1, %", "by seed"]
    return render.table([*head, *(f"points to {base}" for base in bases)], lines)


def tables(results: Results) -> dict[str, str]:
    """The tables of the pages, by the names that stand in their marks."""
    report = records.comparison_report(results)
    runs = retokenization.read_runs()
    points = parts.read_points()
    crossed = parts.measured_cells(points)
    acc1 = trained.read_accuracies()
    recoveries = recover.Results(ROOT / recover.FOLDER)
    recovered = recover.answers(recoveries)
    return {
        "comparison": compare_tables.table(report),
        "settings": compare_tables.settings_table(report),
        "controls": controls_table(results, path_of_controls(results)),
        "controls-fixed": controls_table(results, fixed_controls(results)),
        "scratch": scratch_table(results, "scratch"),
        "retokenization": scratch_table(results, "retokenization"),
        "contrasts": retokenization.declared_table(retokenization.contrasts(runs)),
        "contrasts-beside": retokenization.described_table(runs),
        "rates": retokenization.accuracy_table(runs, "harsher", "keep {}"),
        "masks": retokenization.accuracy_table(runs, "masked", "{} masks"),
        "merges": retokenization.merges_table(runs),
        "schedule": schedule.schedule_table(),
        "overhead": schedule.overhead_table(),
        "speeds": schedule.efficiency_table(),
        "roundings": schedule.rounding_table(),
        "clock": parts.clock(recovered),
        "readme": parts.clock(recovered, ("fusion", "imagenette", "batch 1")),
        "recovered": recover.students_table(recoveries),
        "recovered-contrasts": study.tests_table(recover.primary(recoveries)),
        "parts": parts.grid(crossed, "merged", True),
        "parts-dropped": parts.grid(crossed, "dropped", False),
        "parts-costs": parts.costs(crossed, parts.by_choice(crossed)[:4]),
        "parts-shares": parts.shares_table(crossed),
        "parts-contrasts": parts.tests_table(parts.contrasts(crossed)),
        "parts-chosen": parts.tests_table([parts.primary(points)]),
        "trained": trained.systems_table(acc1),
        "trained-contrasts": trained.contrasts_table(acc1),
        "trained-rounding": trained.rounding_table(acc1),
    }


def filled(text: str, by_name: Mapping[str, str]) -> str:
    """`text` of a page with the tables between its marks."""
    return MARKED.sub(lambda part: f"{part[1]}\n{by_name[part[2]]}\n\n{part[3]}", text)


def main():
    by_name = tables(records.read_results(records.FILE.read_text("utf-8")))
    for name in PAGES:
        path = ROOT / name
        replace_file(path, filled(path.read_text("utf-8"), by_name))


if __name__ == "__main__":
    main()
