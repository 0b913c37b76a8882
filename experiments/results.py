"""The file of results, docs/tables/results.json, and the tables of docs.

python -m experiments.results [runs/compare/compare.json ..]

A row of the file is a figure with its method, setting, cost, interval and right
answers, and names its source: model, weights, data, versions, commit and command. The
comparisons that are named replace rows of the same methods, model and images.

A table of a page stands between the lines "<!-- table NAME -->" and "<!-- /table -->".
Most are made from the rows, the others from the points of the experiments that are over
(`parts`, `retokenization`, `trained_schedules`), from the runs of `recover`, and from
published figures (`schedule`).
"""

import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import intervals, parts, recover, retokenization, schedule, study
from experiments import trained_schedules as trained
from experiments.tables import TOKENS_LEFT
from imagepiece_jax.common.files import read_json, replace_file
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare, compare_tables, statistics
from imagepiece_jax.evaluate.cache import decode_bits
from imagepiece_jax.evaluate.statistics import Estimate, format_estimate

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "tables" / "results.json"
PLOT = ROOT / "docs" / "tables" / "bundles.png"
PAGES = (
    *("README.md", "docs/comparison.md", "docs/imagepiece.md"),
    *("docs/tables/bundles.md", "docs/tables/settings.md", "docs/tables/imagepiece.md"),
    *("docs/tables/retokenization/README.md", "docs/tables/parts/parts.md"),
    "docs/tables/trained_schedules/README.md",
)
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

KINDS = ("merge", "drop", "random", "tome")  # ImagePiece, and what it is tested by


# The file


@dataclasses.dataclass(frozen=True)
class Origin:
    """One run of a command, which gave figures."""

    study: str  # comparison, controls, scratch or retokenization
    model: str
    weights: str | None  # a digest of the tensors; None: the command trained them
    training: str  # how the weights came to be
    data: str
    images: int
    command: str
    commit: str
    versions: Mapping[str, str]  # by package; {} where a run did not record them


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """Accuracy of a method in one setting. Intervals are 95 %, [value, low, high]."""

    source: str  # name of its Origin
    method: str
    setting: Mapping[str, Any]
    gmacs: float
    acc1: list[float]
    tokens: int | None = None
    share: float | None = None  # of the dense MACs, where methods are matched at it
    right: str | None = None  # which images, bits in base64 (`numpy.packbits`)
    parts: list[float] | None = None  # a figure a fold or seed
    # Points more than others, by name, where `right` does not say.
    differences: Mapping[str, list[float]] | None = None

    def bits(self, images: int) -> np.ndarray:
        """The images that were right, bool [images]."""
        return decode_bits(self.right, images)


@dataclasses.dataclass(frozen=True)
class Results:
    """All rows, and the runs that they are from, by name."""

    sources: Mapping[str, Origin]
    rows: tuple[MethodResult, ...]

    def __post_init__(self):
        named = {row.source for row in self.rows}
        if named != set(self.sources):
            found = sorted(named ^ set(self.sources))
            allowed = "sources with rows"
            raise InputError(field="source", value=found, allowed=allowed)
        keys = set()
        for row in self.rows:
            source = self.sources[row.source]
            if row.right is not None:
                accuracy = 100 * row.bits(source.images).mean()
                if abs(accuracy - row.acc1[0]) > 1e-6:
                    raise InputError(field="acc1", value=row.acc1, allowed=accuracy)
            key = (source.study, source.model, source.data, row.method, row.share)
            key += (json.dumps(row.setting, sort_keys=True),)
            if key in keys:
                raise InputError("stands there twice", field="a row", value=key)
            keys.add(key)

    def of(self, name: str) -> list[MethodResult]:
        """The rows of a study."""
        return [row for row in self.rows if self.sources[row.source].study == name]


def read_results(text: str) -> Results:
    """The results of a JSON."""
    content = json.loads(text)
    rows = tuple(MethodResult(**row) for row in content["results"])
    sources = content["sources"].items()
    return Results({name: Origin(**source) for name, source in sources}, rows)


def dump_results(results: Results) -> str:
    """The JSON, a line for each source and row, without what a row does not have."""
    sources = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(dataclasses.asdict(origin))}"
        for name, origin in results.sources.items()
    )
    rows = ",\n".join(
        f"  {json.dumps({k: v for k, v in vars(row).items() if v is not None})}"
        for row in results.rows
    )
    return f'{{\n"sources": {{\n{sources}\n}},\n"results": [\n{rows}\n]\n}}\n'


def take_in(results: Results, report: Mapping[str, Any]) -> Results:
    """`results` with the rows of a comparison.

    They stand where the first of the rows was that they replace: those of the same
    methods, model and images.
    """
    if report["metric"] != "gmacs":
        allowed = "gmacs, whose settings are the same on every device"
        raise InputError(field="metric", value=report["metric"], allowed=allowed)
    shares = ",".join(f"{share:g}" for share in report["shares"])
    data = report["images"]["data"]
    resize = report["images"]["resize"]
    trained = report["trained_as"]
    origin = Origin(
        study="comparison",
        model=report["fields"]["name"],
        weights=report["digest"],
        training="off the shelf" if trained == "none" else f"trained with {trained}",
        data=data,
        images=report["dense"]["images"],
        command=f"python -m imagepiece_jax compare --weights {report['weights']} "
        f"--data {data} --resize {resize} --shares {shares}",
        commit=report["git"],
        versions=report["versions"],
    )
    name = f"comparison-{origin.commit[:7]}"
    dense = report["dense"] | {"method": "dense", "setting": {}, "share": None}
    fields = ("method", "setting", "share", "acc1", "gmacs", "tokens", "right")
    added = [
        MethodResult(name, **{field: line[field] for field in fields})
        for line in (dense, *report["settings"])
    ]
    methods = {row.method for row in added}

    def is_replaced(row):
        old = results.sources[row.source]
        same = (old.study, old.model, old.data) == ("comparison", origin.model, data)
        return same and row.method in methods

    replaced = [is_replaced(row) for row in results.rows]
    place = replaced.index(True) if any(replaced) else len(replaced)
    rows = [row for row in results.rows if not is_replaced(row)]
    rows[place:place] = added  # so that the first model of the file stays it
    sources = {**results.sources, name: origin}
    used = {row.source for row in rows}
    return Results({k: v for k, v in sources.items() if k in used}, tuple(rows))


def compared(results: Results) -> tuple[MethodResult, list[MethodResult]]:
    """The dense model of the first model and images compared, and its reductions."""
    rows = results.of("comparison")
    dense = next(row for row in rows if row.method == "dense")

    def images_of(row):
        return results.sources[row.source].model, results.sources[row.source].data

    same = [row for row in rows if row.share and images_of(row) == images_of(dense)]
    return dense, same


def comparison_report(results: Results) -> dict:
    """A comparison as `compare` writes it, of the first model and images.

    Differences are worked out anew, over all of its rows.
    """
    dense, settings = compared(results)
    first = results.sources[dense.source]
    rights = {(row.method, row.share): row.bits(first.images) for row in settings}
    return {
        "metric": "gmacs",
        "timing": None,
        "shares": sorted({row.share for row in settings}, reverse=True),
        "dense": dataclasses.asdict(dense),
        "settings": [
            dataclasses.asdict(row) | {"reached": row.gmacs / dense.gmacs}
            for row in settings
        ],
        "comparisons": compare.comparisons(rights, dense.bits(first.images)),
    }


# The tables


def path_of_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """ImagePiece and its controls in the comparison, by share and kind."""
    kinds = {f"imagepiece {kind} {compare.CONTROL}": kind for kind in KINDS[1:]}
    kinds["imagepiece"] = KINDS[0]
    return _by_share(compared(results)[1], lambda row: kinds.get(row.method))


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
    evit = {row.share: row for row in compared(results)[1] if row.method == "evit"}
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
    return markdown_table(head, [*rows, line])


def mean_points(right, base) -> np.ndarray:
    """Points of each image, the mean over the shares. bool [shares, images] twice."""
    return 100 * (np.asarray(right, float) - np.asarray(base)).mean(axis=0)


def _change(row, to):
    change = (row.differences or {}).get(to)
    return format_estimate(change and Estimate(*change), signs=True)


def scratch_table(results: Results, name: str) -> str:
    """Models of a study, trained from random weights with their reduction."""
    rows = results.of(name)
    bases = sorted(set().union(*(row.differences or () for row in rows)))
    lines = [
        [row.method, f"{row.gmacs:.5f}", row.tokens, study.interval(row.acc1)]
        + [" ".join(f"{part:.1f}" for part in row.parts)]
        + [_change(row, base) for base in bases]
        for row in rows
    ]
    head = ["system", "GMACs", TOKENS_LEFT, "acc1, %", "by seed"]
    return markdown_table([*head, *(f"points to {base}" for base in bases)], lines)


def tables(results: Results) -> dict[str, str]:
    """The tables of the pages, by the names that stand in their marks."""
    report = comparison_report(results)
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


def main(words):
    results = read_results(FILE.read_text("utf-8"))
    for word in words:
        results = take_in(results, read_json(word))
    if words:
        replace_file(FILE, dump_results(results))
        compare_tables.draw_plot(PLOT, comparison_report(results))
    by_name = tables(results)
    for name in PAGES:
        path = ROOT / name
        replace_file(path, filled(path.read_text("utf-8"), by_name))


if __name__ == "__main__":
    main(sys.argv[1:])
