"""Measured figures of README and docs, and the tables that are made from them.

python -m tools.results                                 writes all tables anew
python -m tools.results runs/experiments/compare.json   takes a comparison in, first

docs/tables/results.json has every figure with its method, model, data, cost, interval,
versions, commit and command. In README and docs a table stands between the lines
"<!-- table NAME -->" and "<!-- /table -->"; nothing else of a page is written here.
"""

import base64
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import compare, compare_page, compare_plot, render
from imagepiece_jax.experiments import schedule as schedules

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "tables" / "results.json"
PLOT = ROOT / "docs" / "comparison.png"
PAGES = ("README.md", "docs/comparison.md", "docs/imagepiece.md")
STUDIES = ("comparison", "controls", "adaptation", "scratch")
COMMAND = "python -m imagepiece_jax.experiments "
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def _require(holds, where, found, allowed):
    if not holds:
        raise InputError(f"{where} is {found!r}; allowed are {allowed}")


def _is_interval(values):
    return len(values) == 3 and values[1] <= values[0] <= values[2]


@dataclasses.dataclass(frozen=True)
class Source:
    """One run of a command: what its figures are of.

    training: how the weights came to be; versions: {} where a run did not record them.
    """

    study: str
    model: str
    weights: str | None  # a digest of the tensors; None: trained by the command
    training: str
    data: str
    images: int
    command: str
    commit: str
    versions: Mapping[str, str]

    def __post_init__(self):
        _require(self.study in STUDIES, "study", self.study, ", ".join(STUDIES))
        for name in ("model", "training", "data"):
            value = getattr(self, name)
            _require(isinstance(value, str) and value, name, value, "words")
        _require(self.images > 0, "images", self.images, "numbers above 0")
        _require(
            self.command.startswith("python "), "command", self.command, "commands"
        )
        _require(
            re.fullmatch("[0-9a-f]{40}", self.commit),
            "commit",
            self.commit,
            "40 digits of a commit",
        )
        texts = [*self.versions, *self.versions.values()]
        _require(
            all(isinstance(text, str) for text in texts),
            "versions",
            self.versions,
            "texts by package",
        )


@dataclasses.dataclass(frozen=True)
class Row:
    """Accuracy of a method in one setting. Intervals are 95 %, [value, low, high].

    share: of the dense model's MACs, where methods are matched at it; right: which
    images were right, bits in base64 (`numpy.packbits`); parts: one figure a fold or
    seed; differences: points that it has more than others, by name, where `right` does
    not say.
    """

    source: str
    method: str
    setting: Mapping[str, Any]
    gmacs: float
    acc1: list[float]
    tokens: int | None = None
    share: float | None = None
    right: str | None = None
    parts: list[float] | None = None
    differences: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _require(
            isinstance(self.method, str) and self.method, "method", self.method, "words"
        )
        _require(
            isinstance(self.setting, dict), "setting", self.setting, "values by field"
        )
        _require(self.gmacs > 0, "gmacs", self.gmacs, "numbers above 0")
        _require(
            _is_interval(self.acc1) and 0 <= self.acc1[1] and self.acc1[2] <= 100,
            "acc1",
            self.acc1,
            "[value, low, high] from 0 to 100",
        )
        for name, change in self.differences.items():
            _require(_is_interval(change), name, change, "[value, low, high]")
        _require(
            self.share is None or 0 < self.share < 1,
            "share",
            self.share,
            "numbers between 0 and 1",
        )

    def bits(self, images: int) -> np.ndarray:
        """Which images were right, bool [images]."""
        data = np.frombuffer(base64.b64decode(self.right), np.uint8)
        return np.unpackbits(data)[:images].astype(bool)


@dataclasses.dataclass(frozen=True)
class Results:
    """All rows, and the runs that they are from, by name."""

    sources: Mapping[str, Source]
    rows: tuple[Row, ...]

    def __post_init__(self):
        named = {row.source for row in self.rows}
        _require(
            named == set(self.sources),
            "source",
            sorted(named ^ set(self.sources)),
            "those of sources, each of which has a row",
        )
        for row in self.rows:
            images = self.sources[row.source].images
            if row.right is not None:
                accuracy = 100 * row.bits(images).mean()
                _require(abs(accuracy - row.acc1[0]) < 1e-6, "acc1", row.acc1, accuracy)
        keys = [row_key(row, self) for row in self.rows]
        twice = [key for key in keys if keys.count(key) > 1]
        _require(not twice, "a row", twice[:1], "rows of different settings")

    def of(self, study: str) -> list[Row]:
        """The rows of a study."""
        return [row for row in self.rows if self.sources[row.source].study == study]


def row_key(row: Row, results: Results) -> tuple:
    """What no two rows have in common."""
    source = results.sources[row.source]
    setting = json.dumps(row.setting, sort_keys=True)
    return source.study, source.model, source.data, row.method, row.share, setting


def read_results(text: str) -> Results:
    """The results of a JSON; InputError names the row that is not as it must be."""
    found = json.loads(text)

    def made(kind, fields, where):
        try:
            return kind(**fields)
        except (InputError, TypeError) as error:
            raise InputError(f"{where}: {error}") from error

    sources = {
        name: made(Source, fields, f"sources.{name}")
        for name, fields in found["sources"].items()
    }
    rows = [
        made(Row, fields, f"results[{place}]")
        for place, fields in enumerate(found["results"])
    ]
    return Results(sources, tuple(rows))


def dump_results(results: Results) -> str:
    """The JSON, a line for each source and row, without fields at their defaults."""
    usual = {
        field.name: field.default
        if field.default is not dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(Row)
        if field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    }
    sources = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(dataclasses.asdict(source))}"
        for name, source in results.sources.items()
    )
    rows = ",\n".join(
        "  "
        + json.dumps(
            {
                name: value
                for name, value in dataclasses.asdict(row).items()
                if name not in usual or value != usual[name]
            }
        )
        for row in results.rows
    )
    return f'{{\n"sources": {{\n{sources}\n}},\n"results": [\n{rows}\n]\n}}\n'


def take_in(results: Results, report: Mapping[str, Any]) -> Results:
    """`results` with the rows of a comparison, which replace those of its methods."""
    if report["metric"] != "gmacs":
        raise InputError(
            f"metric is {report['metric']}; allowed is gmacs, whose settings are the "
            "same on every device"
        )
    shares = ",".join(f"{share:g}" for share in report["shares"])
    source = Source(
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

    def row(line, **fields):
        names = ("acc1", "gmacs", "tokens", "right")
        return Row(name, **fields, **{key: line[key] for key in names})

    added = [row(report["dense"], method="dense", setting={})]
    added += [
        row(line, **{key: line[key] for key in ("method", "setting", "share")})
        for line in report["settings"]
    ]
    methods = {row.method for row in added}
    kept = []
    for each in results.rows:
        old = results.sources[each.source]
        same = (old.study, old.model, old.data) == (
            source.study,
            source.model,
            source.data,
        )
        if not (same and each.method in methods):
            kept.append(each)
    rows = (*kept, *added)
    sources = {**results.sources, name: source}
    used = {row.source for row in rows}
    return Results({k: v for k, v in sources.items() if k in used}, rows)


def comparison_report(results: Results) -> dict:
    """A comparison as `experiments compare` writes it, of the first model and images.

    Differences are worked out anew, over all of its rows.
    """
    rows = results.of("comparison")
    dense = next(row for row in rows if row.method == "dense")
    first = results.sources[dense.source]
    settings = []
    for row in rows:
        source = results.sources[row.source]
        if row.share and (source.model, source.data) == (first.model, first.data):
            settings.append(row)
    rights = {(row.method, row.share): row.bits(first.images) for row in settings}
    return {
        "metric": "gmacs",
        "tolerance": compare.TOLERANCE,
        "timing": None,
        "shares": sorted({row.share for row in settings}, reverse=True),
        "dense": dataclasses.asdict(dense),
        "settings": [
            dataclasses.asdict(row) | {"reached": row.gmacs / dense.gmacs}
            for row in settings
        ],
        "comparisons": compare.comparisons(rights, dense.bits(first.images)),
    }


CONTROLS = ("merge", "drop", "random", "tome")  # ImagePiece, and what it is tested by


def controls_table(results: Results) -> str:
    """ImagePiece beside its controls of the same token counts, and EViT."""
    at = {}
    for row in results.of("controls"):
        at.setdefault(row.share, {})[row.setting["inattentive"]] = row
    images = results.sources[row.source].images
    evit = {r.share: r for r in results.of("comparison") if r.method == "evit"}
    rows = []
    for share, variants in sorted(at.items(), reverse=True):
        line = [f"{share:g}", f"{variants['merge'].setting['keep_rate']:g}"]
        line += [f"{variants[name].acc1[0]:.1f}" for name in CONTROLS]
        line.append(f"{evit[share].acc1[0]:.1f}")
        right = {name: row.bits(images) for name, row in variants.items()}
        for one, other in (
            (right["merge"], right["drop"]),
            (right["merge"], evit[share].bits(images)),
            (right["drop"], evit[share].bits(images)),
        ):
            change = statistics.paired_difference(one, other)
            line.append(_interval_of_difference(change))
        rows.append(line)
    head = ["share of the dense MACs", "keep", "ImagePiece", "dropping"]
    head += ["random pairs", "ToMe's matching", "EViT"]
    head += ["ImagePiece - dropping", "ImagePiece - EViT", "dropping - EViT"]
    return render.table(head, rows)


def _interval_of_difference(change):
    value, low, high = (f"{number:+.1f}" for number in change)
    return f"{value} [{low}, {high}]"


def _interval(values):
    return statistics.format_estimate(render.estimate(values))


def _change(row, to):
    if to not in row.differences:
        return ""
    return _interval_of_difference(row.differences[to])


def adaptation_table(results: Results) -> str:
    """Distillation of a checkpoint to reductions, by folds."""
    rows = [
        [f"`{row.method}`", compare_page.fields(row.setting), f"{row.gmacs:.3f}"]
        + [_interval(row.acc1), _change(row, "unadapted")]
        + [" ".join(f"{part:+.1f}" for part in row.parts)]
        for row in results.of("adaptation")
    ]
    head = ["method", "setting", "GMACs", "adapted, acc1, %"]
    head += ["points to unadapted, over folds", "by fold"]
    return render.table(head, rows)


def scratch_table(results: Results) -> str:
    """Models trained from random weights with their reduction."""
    rows = [
        [row.method, f"{row.gmacs:.5f}", row.tokens, _interval(row.acc1)]
        + [" ".join(f"{part:.1f}" for part in row.parts)]
        + [_change(row, "dense, conv stem"), _change(row, "random tokens")]
        for row in results.of("scratch")
    ]
    head = ["system", "GMACs", render.TOKENS_LEFT, "acc1, %", "by seed"]
    head += ["points to dense, conv stem", "points to random tokens"]
    return render.table(head, rows)


SHORT = ("tome", "imagepiece", "evit", "random")  # of README


def tables(results: Results) -> dict[str, str]:
    """The tables of the pages, by the names that stand in their marks."""
    report = comparison_report(results)
    return {
        "comparison-short": compare_page.table(report, SHORT),
        "comparison": compare_page.table(report),
        "settings": compare_page.settings_table(report),
        "controls": controls_table(results),
        "adaptation": adaptation_table(results),
        "scratch": scratch_table(results),
        "schedule": schedules.schedule_table(),
        "overhead": schedules.overhead_table(),
        "speeds": schedules.efficiency_table(),
        "roundings": schedules.rounding_table(),
    }


def filled(text: str, made: Mapping[str, str]) -> str:
    """`text` of a page with the tables between its marks."""
    return MARKED.sub(lambda part: f"{part[1]}\n{made[part[2]]}\n\n{part[3]}", text)


def main(words):
    results = read_results(FILE.read_text("utf-8"))
    for word in words:
        report = json.loads(pathlib.Path(word).read_text("utf-8"))
        results = take_in(results, report)
    replace_file(FILE, dump_results(results))
    made = tables(results)
    compare_plot.draw(PLOT, comparison_report(results))
    for name in PAGES:
        page = ROOT / name
        replace_file(page, filled(page.read_text("utf-8"), made))


if __name__ == "__main__":
    main(sys.argv[1:])
