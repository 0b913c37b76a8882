"""The rows of docs/tables/results.json, and how a comparison gets into it.

python -m experiments.records runs/compare/compare.json

Each row is a figure with its method, setting, cost, interval and right answers, and
names its source: model, weights, data, versions, commit and command.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagepiece_jax.common.files import read_json, replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare, compare_tables
from imagepiece_jax.evaluate.cache import decode_bits

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "tables" / "results.json"
PLOT = ROOT / "docs" / "tables" / "bundles.png"


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

    def of(self, study: str) -> list[MethodResult]:
        """The rows of a study."""
        return [row for row in self.rows if self.sources[row.source].study == study]


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


def main(words):
    results = read_results(FILE.read_text("utf-8"))
    for word in words:
        results = take_in(results, read_json(word))
    replace_file(FILE, dump_results(results))
    compare_tables.draw_plot(PLOT, comparison_report(results))


if __name__ == "__main__":
    main(sys.argv[1:])
