"""Measured figures of docs, and the tables that are made from them.

python -m experiments.results                               writes all tables anew
python -m experiments.results runs/compare/compare.json     takes a comparison in, first

docs/tables/results.json has every figure with its method, model, data, cost, interval,
versions, commit and command; those of the declared experiment are taken from its runs,
in docs/tables/retokenization. In docs a table stands between the lines
"<!-- table NAME -->" and "<!-- /table -->"; nothing else of a page is written here.
"""

import base64
import dataclasses
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import clock, parts, render
from experiments import schedule as schedules
from experiments.scratch import contrasts as declared
from experiments.scratch import page, runs, trained
from imagepiece_jax.common import fields
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare, compare_tables, statistics

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "tables" / "results.json"
PLOT = ROOT / "docs" / "tables" / "bundles.png"
RUNS = ROOT / "docs" / "tables" / "retokenization"
PARTS = ROOT / "docs" / "tables" / "parts" / "points.jsonl"
PAGES = (
    *("README.md", "docs/comparison.md", "docs/imagepiece.md"),
    *("docs/tables/bundles.md", "docs/tables/settings.md"),
    "docs/tables/retokenization/README.md",
)
STUDIES = ("comparison", "controls", "adaptation", "scratch", "retokenization")
COMMAND = "python -m imagepiece_jax "
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def _checked(holds, allowed, default=fields.REQUIRED):
    """A field of values that `holds` is true of; allowed: these in words."""

    def convert(value):
        if not holds(value):
            raise ValueError(value)
        return value

    return fields.checked(default, convert, allowed)


def _words():
    return _checked(lambda value: isinstance(value, str) and value, "words")


def _is_interval(values):
    return len(values) == 3 and values[1] <= values[0] <= values[2]


@dataclasses.dataclass(frozen=True)
class Origin(fields.CheckedFields):
    """One run of a command: what its figures are of.

    weights: a digest of the tensors; None where the command trained them
    training: how the weights came to be
    versions: by package; {} where a run did not record them
    """

    study: str = fields.choice(allowed=STUDIES)
    model: str = _words()
    weights: str | None
    training: str = _words()
    data: str = _words()
    images: int = fields.count(least=1)
    command: str = _checked(lambda text: text.startswith("python "), "commands")
    commit: str = _checked(
        lambda text: re.fullmatch("[0-9a-f]{40}", text), "40 digits of a commit"
    )
    versions: Mapping[str, str] = _checked(
        lambda texts: all(isinstance(text, str) for text in texts.values()),
        "texts by package",
    )


@dataclasses.dataclass(frozen=True)
class MethodResult(fields.CheckedFields):
    """Accuracy of a method in one setting. Intervals are 95 %, [value, low, high].

    source: name of its Origin
    share: of the dense model's MACs, where methods are matched at it
    right: which images were right, bits in base64 (`numpy.packbits`)
    parts: one figure a fold or seed
    differences: points that it has more than others, by name, where `right` does not
        say
    """

    source: str
    method: str = _words()
    setting: Mapping[str, Any] = _checked(
        lambda value: isinstance(value, dict), "values by field"
    )
    gmacs: float = fields.positive()
    acc1: list[float] = _checked(
        lambda values: _is_interval(values) and 0 <= values[1] and values[2] <= 100,
        "[value, low, high] from 0 to 100",
    )
    tokens: int | None = None
    share: float | None = fields.optional(fields.number(above=0, below=1))
    right: str | None = None
    parts: list[float] | None = None
    differences: Mapping[str, list[float]] | None = _checked(
        lambda changes: all(map(_is_interval, (changes or {}).values())),
        "[value, low, high] by name",
        default=None,
    )

    def bits(self, images: int) -> np.ndarray:
        """Which images were right, bool [images]."""
        data = np.frombuffer(base64.b64decode(self.right), np.uint8)
        return np.unpackbits(data)[:images].astype(bool)


@dataclasses.dataclass(frozen=True)
class Results:
    """All rows, and the runs that they are from, by name."""

    sources: Mapping[str, Origin]
    rows: tuple[MethodResult, ...]

    def __post_init__(self):
        named = {row.source for row in self.rows}
        if named != set(self.sources):
            raise InputError(
                f"source is {sorted(named ^ set(self.sources))}; allowed: those of "
                "sources, each of which has a row"
            )
        for row in self.rows:
            if row.right is not None:
                accuracy = 100 * row.bits(self.sources[row.source].images).mean()
                if abs(accuracy - row.acc1[0]) > 1e-6:
                    raise InputError(f"acc1 is {row.acc1}; allowed: {accuracy}")
        keys = [row_key(row, self) for row in self.rows]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise InputError(
                f"a row is {twice[:1]}; allowed: rows of different settings"
            )

    def of(self, study: str) -> list[MethodResult]:
        """The rows of a study."""
        return [row for row in self.rows if self.sources[row.source].study == study]


def row_key(row: MethodResult, results: Results) -> tuple:
    """What no two rows have in common."""
    source = results.sources[row.source]
    setting = json.dumps(row.setting, sort_keys=True)
    return source.study, source.model, source.data, row.method, row.share, setting


def read_results(text: str) -> Results:
    """The results of a JSON; InputError names the row that is not as it must be."""
    content = json.loads(text)

    def checked(kind, values, where):
        try:
            return kind(**values)
        except (InputError, TypeError) as error:
            raise InputError(f"{where}: {error}") from error

    sources = {
        name: checked(Origin, values, f"sources.{name}")
        for name, values in content["sources"].items()
    }
    rows = [
        checked(MethodResult, values, f"results[{place}]")
        for place, values in enumerate(content["results"])
    ]
    return Results(sources, tuple(rows))


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
        raise InputError(
            f"metric is {report['metric']}; allowed: gmacs, whose settings are the "
            "same on every device"
        )
    shares = ",".join(f"{share:g}" for share in report["shares"])
    source = Origin(
        study="comparison",
        model=report["fields"]["name"],
        weights=report["digest"],
        training="off the shelf"
        if report["trained_as"] == "none"
        else f"trained with {report['trained_as']}",
        data=report["images"]["data"],
        images=report["dense"]["images"],
        command=f"{COMMAND}compare --weights {report['weights']} "
        f"--data {report['images']['data']} --resize {report['images']['resize']} "
        f"--shares {shares}",
        commit=report["git"],
        versions=report["versions"],
    )
    name = f"comparison-{source.commit[:7]}"

    def row(line, **more):
        names = ("acc1", "gmacs", "tokens", "right")
        return MethodResult(name, **more, **{key: line[key] for key in names})

    added = [row(report["dense"], method="dense", setting={})]
    added += [
        row(line, **{key: line[key] for key in ("method", "setting", "share")})
        for line in report["settings"]
    ]
    methods = {row.method for row in added}

    def is_replaced(row):
        old = results.sources[row.source]
        return row.method in methods and (old.study, old.model, old.data) == (
            source.study,
            source.model,
            source.data,
        )

    replaced = [place for place, row in enumerate(results.rows) if is_replaced(row)]
    place = replaced[0] if replaced else len(results.rows)
    rows = (
        *results.rows[:place],  # so that the first model of the file stays it
        *added,
        *(row for row in results.rows[place:] if not is_replaced(row)),
    )
    sources = {**results.sources, name: source}
    used = {row.source for row in rows}
    return Results({k: v for k, v in sources.items() if k in used}, rows)


def declared_runs() -> tuple[list[dict], dict]:
    """All runs of the declared experiment, by seed, and its plan.

    Raises InputError for a missing run, and for runs of several commits or versions.
    """
    plan = json.loads((RUNS / "plan.json").read_text("utf-8"))
    found = runs.finished(RUNS, plan)
    there = {(run["system"], run["seed"]) for run in found}
    for run in itertools.product(declared.SYSTEMS, declared.SEEDS):
        if run not in there:
            raise InputError(f"{RUNS} has no {run[0]}_seed{run[1]}; allowed: every run")
    made = {json.dumps([run["git"], run["versions"]]) for run in found}
    if len(made) > 1:
        raise InputError(f"{RUNS} has runs by {sorted(made)}; allowed: one of these")
    return found, plan


def with_declared(results: Results, found: list[dict], plan: dict) -> Results:
    """`results` with the systems of the declared experiment, from `declared_runs`."""
    study = "retokenization"
    rows = [row for row in results.rows if results.sources[row.source].study != study]
    sources = {row.source: results.sources[row.source] for row in rows}
    origin = _origin_of_runs(study, found[0], plan)
    name = f"{study}-{origin.commit[:7]}"
    for system in plan["systems"]:
        ours, stem = page.by_seed(found, system["name"]), system["stem"]
        percent = [100.0 * ours[seed] for seed in declared.SEEDS]
        rows.append(
            MethodResult(
                name,
                method=system["title"],
                setting={k: v for k, v in system["reduction"].items() if k != "name"},
                gmacs=system["gmacs"],
                tokens=system["tokens"],
                acc1=[*page.interval(percent)],
                parts=[float(right.mean()) for right in percent],
                differences={
                    f"{base}, same stem": [
                        *page.difference(ours, page.by_seed(found, f"{base}_{stem}"))
                    ]
                    for base in ("dense", "dropping")
                    if not system["name"].startswith(base)
                },
            )
        )
    return Results({**sources, name: origin}, tuple(rows))


def _origin_of_runs(study, run, plan):
    """The Origin of the declared experiment; run: any of its runs."""
    model = "ViT of width {width}, {depth} blocks, {heads} heads, patch {patch}"
    seeds = ",".join(map(str, declared.SEEDS))
    data = f"folder:{pathlib.Path(plan['data']).name}"
    flags = {"data": data, "systems": ",".join(declared.SYSTEMS), "seeds": seeds}
    names = ("image_size", "patch", "width", "depth", "heads", "keep_rate")
    names += ("train_batch_size", "epochs", "dtype")
    flags |= {name: plan["settings"][name] for name in names}
    command = " ".join(f"--{name} {value}" for name, value in flags.items())
    return Origin(
        study=study,
        model=f"{model}, {{image_size}} pixels".format(**plan["settings"]),
        weights=None,
        training=f"{plan['epochs']} epochs from random weights, seeds {seeds}",
        data=data,
        images=run["images"],
        command=f"python -m imagepiece_jax.experiments scratch {command}",
        commit=run["git"],
        versions=run["versions"],
    )


def compared(results: Results) -> tuple[MethodResult, list[MethodResult]]:
    """The dense model of the first model and images compared, and its reductions."""
    rows = results.of("comparison")
    dense = next(row for row in rows if row.method == "dense")
    first = results.sources[dense.source]
    settings = []
    for row in rows:
        source = results.sources[row.source]
        if row.share and (source.model, source.data) == (first.model, first.data):
            settings.append(row)
    return dense, settings


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


KINDS = ("merge", "drop", "random", "tome")  # ImagePiece, and what it is tested by


def path_of_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """ImagePiece and its controls in the comparison, by share and kind."""
    kinds = {name: field["inattentive"] for name, field in compare.CONTROLS.items()}
    kinds[compare.CONTROLLED] = KINDS[0]
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
    rows, right = [], {kind: [] for kind in (*KINDS, "evit")}
    for share, variants in at.items():
        shown = {**variants, "evit": evit[share]}
        for kind, each in right.items():
            images = results.sources[shown[kind].source].images
            each.append(shown[kind].bits(images))
        setting = {"merge_ratio": 0.08, **shown["merge"].setting}
        line = [f"{share:g}", f"{setting['keep_rate']:g}, {setting['merge_ratio']:g}"]
        line += [f"{shown[kind].acc1[0]:.1f}" for kind in ("merge", "drop", "evit")]
        rows.append(line)
        for one, other in contrasts:
            change = statistics.paired_difference(right[one][-1], right[other][-1])
            line.append(_interval_of_difference(change))
    line = ["mean", ""]
    line += [f"{100 * np.mean(right[kind]):.1f}" for kind in ("merge", "drop", "evit")]
    for one, other in contrasts:
        change = statistics.mean(mean_points(right[one], right[other]))
        line.append(_interval_of_difference(change))
    head = ["share of the dense MACs", "keep, merge", "ImagePiece", "dropping", "EViT"]
    head += ["ImagePiece - dropping", "ImagePiece - random pairs"]
    head += ["ImagePiece - ToMe's matching", "ImagePiece - EViT", "dropping - EViT"]
    return render.table(head, [*rows, line])


def mean_points(right, base) -> np.ndarray:
    """Points of each image, the mean over the shares. bool [shares, images] twice."""
    return 100 * (np.asarray(right, float) - np.asarray(base)).mean(axis=0)


def _interval_of_difference(change):
    value, low, high = (f"{number:+.1f}" for number in change)
    return f"{value} [{low}, {high}]"


def _interval(values):
    return statistics.format_estimate(render.estimate(values))


def _change(row, to):
    change = (row.differences or {}).get(to)
    return "" if change is None else _interval_of_difference(change)


def adaptation_table(results: Results) -> str:
    """Distillation of a checkpoint to reductions, by folds."""
    rows = [
        [f"`{row.method}`", compare_tables.fields(row.setting), f"{row.gmacs:.3f}"]
        + [_interval(row.acc1), _change(row, "unadapted")]
        + [" ".join(f"{part:+.1f}" for part in row.parts)]
        for row in results.of("adaptation")
    ]
    head = ["method", "setting", "GMACs", "adapted, acc1, %"]
    head += ["points to unadapted, over folds", "by fold"]
    return render.table(head, rows)


def scratch_table(results: Results, study: str) -> str:
    """Models trained from random weights with their reduction."""
    rows = results.of(study)
    bases = sorted({base for row in rows for base in row.differences or ()})
    lines = [
        [row.method, f"{row.gmacs:.5f}", row.tokens, _interval(row.acc1)]
        + [" ".join(f"{part:.1f}" for part in row.parts)]
        + [_change(row, base) for base in bases]
        for row in rows
    ]
    head = ["system", "GMACs", render.TOKENS_LEFT, "acc1, %", "by seed"]
    return render.table([*head, *(f"points to {base}" for base in bases)], lines)


def tables(results: Results, found: list[dict], plan: dict) -> dict[str, str]:
    """The tables of the pages, by the names that stand in their marks.

    found, plan: of `declared_runs`
    """
    report, accuracies = comparison_report(results), declared.read(found)
    crossed = parts.kept(PARTS)
    return {
        "comparison": compare_tables.table(report),
        "settings": compare_tables.settings_table(report),
        "controls": controls_table(results, path_of_controls(results)),
        "controls-fixed": controls_table(results, fixed_controls(results)),
        "adaptation": adaptation_table(results),
        "scratch": scratch_table(results, "scratch"),
        "retokenization": scratch_table(results, "retokenization"),
        "contrasts": declared.declared_table(declared.contrasts(accuracies)),
        "contrasts-beside": declared.beside_table(accuracies),
        "rates": trained.rates_table(found, plan),
        "masks": trained.masks_table(found, plan),
        "merges": trained.merges_table(found, plan),
        "schedule": schedules.schedule_table(),
        "overhead": schedules.overhead_table(),
        "speeds": schedules.efficiency_table(),
        "roundings": schedules.rounding_table(),
        "clock": clock.table(PARTS.parent),
        "readme": clock.table(PARTS.parent, ("fusion", "imagenette", "batch 1")),
        "parts": parts.grid(crossed, "merged", True),
        "parts-dropped": parts.grid(crossed, "dropped", False),
        "parts-costs": parts.costs(crossed, parts.by_choice(crossed)[:4]),
        "parts-shares": parts.shares_table(crossed),
        "parts-contrasts": parts.tests_table(parts.contrasts(crossed)),
    }


def filled(text: str, made: Mapping[str, str]) -> str:
    """`text` of a page with the tables between its marks."""
    return MARKED.sub(lambda part: f"{part[1]}\n{made[part[2]]}\n\n{part[3]}", text)


def main(words):
    results = read_results(FILE.read_text("utf-8"))
    for word in words:
        report = json.loads(pathlib.Path(word).read_text("utf-8"))
        results = take_in(results, report)
    found, plan = declared_runs()
    results = with_declared(results, found, plan)
    replace_file(FILE, dump_results(results))
    made = tables(results, found, plan)
    compare_tables.draw_plot(PLOT, comparison_report(results))
    parts.draw(ROOT / "docs" / "parts.png", parts.kept(PARTS))
    for name in PAGES:
        path = ROOT / name
        replace_file(path, filled(path.read_text("utf-8"), made))


if __name__ == "__main__":
    main(sys.argv[1:])
