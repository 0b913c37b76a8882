"""The file of results, docs/tables/results.json, and the tables of docs.

python -m experiments.results [runs/compare/compare.json ..]

A row of the file is a figure with its method, setting, cost, interval and right
answers, and names its source: model, weights, data, versions, commit and command. The
comparisons that are named replace rows of the same methods, model and images.

A table of a page stands between the lines "<!-- table NAME -->" and "<!-- /table -->".
Most are made from the rows, the others from the points of the experiments that are over
(`parts`, `retokenization`, `trained_schedules`), from the runs of `recover`, from the
cells of `late`, and from published figures (`schedule`).
"""

import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import (
    intervals,
    late,
    neighbors,
    parts,
    recover,
    recover_elsewhere,
    recover_sharp,
    retokenization,
    schedule,
    study,
)
from experiments import trained_schedules as trained
from experiments.paper_tables import TOKENS_LEFT
from imagepiece_jax.common.files import read_json, replace_file
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare, compare_tables, statistics
from imagepiece_jax.evaluate.cache import decode_bits, read_lines
from imagepiece_jax.evaluate.statistics import Estimate, format_estimate

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "tables" / "results.json"
PLOT = ROOT / "docs" / "tables" / "bundles.png"
PAGES = (
    *("README.md", "docs/comparison.md", "docs/recovery.md"),
    *("docs/imagepiece.md", "docs/search.md"),
    *("docs/tables/bundles.md", "docs/tables/settings.md", "docs/tables/imagepiece.md"),
    *("docs/tables/retokenization/README.md", "docs/tables/parts/parts.md"),
    "docs/tables/trained_schedules/README.md",
)
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

KINDS = ("merge", "drop", "random", "tome")  # ImagePiece, and what it is tested by
# {control, as the comparison called it: kind}
CONTROLS = {f"imagepiece {kind} (control)": kind for kind in KINDS[1:]}
# Kinds whose accuracies are in the table of controls, and pairs that are compared
SHOWN = {"merge": "ImagePiece", "drop": "dropping", "evit": "EViT"}
CONTRASTS = {
    "ImagePiece - dropping": ("merge", "drop"),
    "ImagePiece - random pairs": ("merge", "random"),
    "ImagePiece - ToMe's matching": ("merge", "tome"),
    "ImagePiece - EViT": ("merge", "evit"),
    "dropping - EViT": ("drop", "evit"),
}


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
            raise InputError("source", found, allowed)
        keys = set()
        for row in self.rows:
            self._check_accuracy(row)
            key = self._key(row)
            if key in keys:
                raise InputError("a row", key, problem="stands there twice")
            keys.add(key)

    def _check_accuracy(self, row):
        if row.right is None:
            return
        images = self.sources[row.source].images
        accuracy = 100 * row.bits(images).mean()
        if abs(accuracy - row.acc1[0]) > 1e-6:
            raise InputError("acc1", row.acc1, f"{accuracy:g}")

    def _key(self, row):
        source = self.sources[row.source]
        setting = json.dumps(row.setting, sort_keys=True)
        measured = (source.study, source.model, source.data)
        return (*measured, row.method, row.share, setting)

    def of(self, name: str) -> list[MethodResult]:
        """The rows of a study."""
        return [row for row in self.rows if self.sources[row.source].study == name]


def read_results(text: str) -> Results:
    """The results of a JSON."""
    content = json.loads(text)
    sources = {}
    for name, source in content["sources"].items():
        sources[name] = Origin(**source)
    rows = [MethodResult(**row) for row in content["results"]]
    return Results(sources, tuple(rows))


def dump_results(results: Results) -> str:
    """The JSON, a line for each source and row, without what a row does not have."""
    sources = []
    for name, origin in results.sources.items():
        fields = json.dumps(dataclasses.asdict(origin))
        sources.append(f"  {json.dumps(name)}: {fields}")
    rows = []
    for row in results.rows:
        fields = {k: v for k, v in vars(row).items() if v is not None}
        rows.append(f"  {json.dumps(fields)}")
    lines = [
        '{\n"sources": {',
        ",\n".join(sources),
        '},\n"results": [',
        ",\n".join(rows),
        "]\n}\n",
    ]
    return "\n".join(lines)


def take_in(results: Results, report: Mapping[str, Any]) -> Results:
    """`results` with the rows of a comparison.

    They stand where the first of the rows was that they replace: those of the same
    methods, model and images.
    """
    if report["metric"] != "gmacs":
        allowed = "gmacs, whose settings are the same on every device"
        raise InputError("metric", report["metric"], allowed)
    origin = origin_of(report)
    name = f"comparison-{origin.commit[:7]}"
    dense = report["dense"] | {"method": "dense", "setting": {}, "share": None}
    fields = ("method", "setting", "share", "acc1", "gmacs", "tokens", "right")
    added = []
    for line in (dense, *report["settings"]):
        figures = {field: line[field] for field in fields}
        added.append(MethodResult(name, **figures))
    methods = {row.method for row in added}
    rows = []
    place = None
    for row in results.rows:
        old = results.sources[row.source]
        if row.method in methods and are_same_images(old, origin):
            if place is None:
                place = len(rows)  # so that the first model of the file stays it
        else:
            rows.append(row)
    if place is None:
        place = len(rows)
    rows[place:place] = added
    sources = {**results.sources, name: origin}
    used = {row.source for row in rows}
    kept = {name: source for name, source in sources.items() if name in used}
    return Results(kept, tuple(rows))


def origin_of(report: Mapping[str, Any]) -> Origin:
    """The source of a comparison."""
    shares = ",".join(f"{share:g}" for share in report["shares"])
    data = report["images"]["data"]
    resize = report["images"]["resize"]
    training = "off the shelf"
    if report["trained_as"] != "none":
        training = f"trained with {report['trained_as']}"
    return Origin(
        study="comparison",
        model=report["fields"]["name"],
        weights=report["digest"],
        training=training,
        data=data,
        images=report["dense"]["images"],
        command=f"python -m imagepiece_jax compare --weights {report['weights']} "
        f"--data {data} --resize {resize} --shares {shares}",
        commit=report["git"],
        versions=report["versions"],
    )


def are_same_images(one: Origin, other: Origin) -> bool:
    """Whether two sources are of one study, model and set of images."""
    fields = ("study", "model", "data")
    return all(getattr(one, field) == getattr(other, field) for field in fields)


def compared(results: Results) -> tuple[MethodResult, list[MethodResult]]:
    """The dense model of the first model and images compared, and its reductions."""
    rows = results.of("comparison")
    dense = next(row for row in rows if row.method == "dense")
    first = results.sources[dense.source]
    same = []
    for row in rows:
        if row.share and are_same_images(results.sources[row.source], first):
            same.append(row)
    return dense, same


def comparison_report(results: Results) -> dict:
    """A comparison as `compare` writes it, of the first model and images.

    Differences are worked out anew, over all of its rows.
    """
    dense, rows = compared(results)
    images = results.sources[dense.source].images
    rights = {}
    settings = []
    for row in rows:
        rights[row.method, row.share] = row.bits(images)
        settings.append(dataclasses.asdict(row) | {"reached": row.gmacs / dense.gmacs})
    return {
        "metric": "gmacs",
        "timing": None,
        "shares": sorted({row.share for row in rows}, reverse=True),
        "dense": dataclasses.asdict(dense),
        "settings": settings,
        "comparisons": compare.comparisons(
            rights, dense.bits(images), beside=dict.fromkeys(CONTROLS, ["imagepiece"])
        ),
    }


# The tables

# README's table: what is typed, the student of `recover` that it makes, and the row of
# the table by time that has its figure on a GPU.
TYPED = {
    "reduction=0.6": ("three-0.6", "most attended in 3 blocks .6"),
    "image_size=192": ("small-192", "dense at 192 pixels"),
    "reduction=0.5": ("three-0.5", "most attended in 3 blocks .5"),
    "image_size=176": ("small-176", "dense at 176 pixels"),
    "reduction=0.4": ("spread-0.4", "most attended at one share .4"),
    "image_size=160": ("small-160", "dense at 160 pixels"),
}


def path_of_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """ImagePiece and its controls in the comparison, by share and kind."""
    kinds = {"imagepiece": KINDS[0]} | CONTROLS
    _, rows = compared(results)
    return by_share(rows, lambda row: kinds.get(row.method))


def fixed_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """The same with merge ratio .08 at every share."""
    rows = results.of("controls")
    return by_share(rows, lambda row: row.setting.get("inattentive"))


def by_share(rows, kind_of) -> dict[float, dict[str, MethodResult]]:
    """Rows by share, the largest first, and kind; those without a kind are left out."""
    found = {}
    for row in sorted(rows, key=lambda row: -row.share):
        kind = kind_of(row)
        if kind:
            found.setdefault(row.share, {})[kind] = row
    return found


def controls_table(
    results: Results, at: Mapping[float, Mapping[str, MethodResult]]
) -> str:
    """ImagePiece beside its controls of the same token counts, and EViT.

    The last row has the means over the shares; their intervals are paired by image.
    """
    _, others = compared(results)
    evit = {row.share: row for row in others if row.method == "evit"}
    rights = {kind: [] for kind in (*KINDS, "evit")}
    lines = []
    for share, variants in at.items():
        rows = {**variants, "evit": evit[share]}
        for kind, found in rights.items():
            source = results.sources[rows[kind].source]
            found.append(rows[kind].bits(source.images))
        setting = {"merge_ratio": 0.08, **variants["merge"].setting}
        line = [f"{share:g}", f"{setting['keep_rate']:g}, {setting['merge_ratio']:g}"]
        for kind in SHOWN:
            value, *_ = rows[kind].acc1
            line.append(f"{value:.1f}")
        for one, other in CONTRASTS.values():
            change = statistics.paired_difference(rights[one][-1], rights[other][-1])
            line.append(format_estimate(change, signs=True))
        lines.append(line)
    line = ["mean", ""]
    for kind in SHOWN:
        percent = 100 * np.mean(rights[kind])
        line.append(f"{percent:.1f}")
    for one, other in CONTRASTS.values():
        points = mean_points(rights[one], rights[other])
        line.append(format_estimate(intervals.mean(points), signs=True))
    lines.append(line)
    head = ["share of the dense MACs", "keep, merge", *SHOWN.values(), *CONTRASTS]
    return markdown_table(head, lines)


def readme_table(recoveries: recover.Results) -> str:
    """What is lost and gained by each of TYPED, on all photographs that judge.

    A GPU's figures are of the last run that timed smaller images; "" is not timed.
    """
    timed = read_lines(ROOT / "docs" / "tables" / "h200" / "forms.jsonl")
    *_, last = [line["run"] for line in timed if line["image_size"] == 160]
    on_gpu = {}
    for line in timed:
        if line["run"] == last:
            on_gpu[line["model"]] = f"{line['ratio'][0]:.2f}"
    dense = recoveries.crossfitted("dense", recover.OFF)
    all_macs = recoveries.runs[recover.Cell("dense").name]["gmacs"]
    lines = []
    for typed, (student, setting) in TYPED.items():
        off = recoveries.crossfitted(student, recover.OFF)
        own = recoveries.recovered(student, "AB")
        share = recoveries.runs[recover.Cell(student).name]["gmacs"] / all_macs
        line = [
            f"`{typed}`",
            f"{share:.2f}",
            lost(off, dense),
            lost(own, dense),
            f"{recoveries.times[student]['ratio'][0]:.2f}",
            on_gpu.get(setting, ""),
        ]
        lines.append(line)
    head = ["typed", "multiply-adds", "points lost", "points lost, recovered"]
    return markdown_table([*head, "CPU", "H200, DeiT-S"], lines)


def lost(judged: study.Judged, dense: study.Judged) -> str:
    """Points of accuracy that a model has less than the dense one."""
    value, low, high = study.points(judged.right, dense.right)
    return format_estimate(Estimate(-value, -high, -low))


def mean_points(right, base) -> np.ndarray:
    """Points of each image, the mean over the shares. bool [shares, images] twice."""
    change = np.asarray(right, float) - np.asarray(base)
    return 100 * change.mean(axis=0)


def change_cell(row: MethodResult, to: str) -> str:
    """Points that a row has more than a system; blank where it was not compared."""
    if row.differences is None or to not in row.differences:
        return ""
    return format_estimate(Estimate(*row.differences[to]), signs=True)


def scratch_table(results: Results, name: str) -> str:
    """Models of a study, trained from random weights with their reduction."""
    rows = results.of(name)
    bases = set()
    for row in rows:
        bases.update(row.differences or ())
    bases = sorted(bases)
    lines = []
    for row in rows:
        line = [row.method, f"{row.gmacs:.5f}", row.tokens, study.interval(row.acc1)]
        line.append(" ".join(f"{part:.1f}" for part in row.parts))
        line += [change_cell(row, base) for base in bases]
        lines.append(line)
    head = ["system", "GMACs", TOKENS_LEFT, "acc1, %", "by seed"]
    head += [f"points to {base}" for base in bases]
    return markdown_table(head, lines)


def tables(results: Results) -> dict[str, str]:
    """The tables of the pages, by the names that stand in their marks."""
    report = comparison_report(results)
    runs = retokenization.read_runs()
    points = parts.read_points()
    crossed = parts.measured_cells(points)
    acc1 = trained.read_accuracies()
    recoveries = recover.Results(ROOT / recover.FOLDER)
    recovered = recover.answers(recoveries)
    cells = recover_elsewhere.Results(ROOT / recover_elsewhere.FOLDER)
    rounded = recover_elsewhere.fastest(cells)
    sharp = recover_sharp.Results(ROOT / recover_sharp.FOLDER)
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
        "clock": parts.clock(recovered, rounded),
        "readme": readme_table(recoveries),
        "recovered": recover.students_table(recoveries),
        "recovery": recover_sharp.short_table(recoveries, sharp),
        "recovered-sharp": recover_sharp.sharp_table(sharp),
        "recovered-contrasts": study.tests_table(recover.primary(recoveries)),
        "parts": parts.grid(crossed, "merged", True),
        "parts-dropped": parts.grid(crossed, "dropped", False),
        "parts-costs": parts.costs(crossed, parts.by_choice(crossed)[:4]),
        "late-choices": late.choices_table(late.Results(ROOT / late.FOLDER)),
        "neighbors": neighbors.found_table(ROOT / neighbors.FOLDER),
        "parts-shares": parts.shares_table(crossed),
        "parts-contrasts": parts.tests_table(parts.contrasts(crossed)),
        "parts-chosen": parts.tests_table([parts.primary(points)]),
        "trained": trained.systems_table(acc1),
        "trained-contrasts": trained.contrasts_table(acc1),
        "trained-rounding": trained.rounding_table(acc1),
    }


def filled(text: str, by_name: Mapping[str, str]) -> str:
    """`text` of a page with the tables between its marks."""

    def fill(part):
        start, name, end = part.groups()
        return f"{start}\n{by_name[name]}\n\n{end}"

    return MARKED.sub(fill, text)


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
