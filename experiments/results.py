"""Tables of the pages, from the figures of docs/results.

python -m experiments.results

A row of results.json is a figure with its method, setting, cost, interval and right
answers, and names its source: model, weights, data, versions, commit and command. A
table of a page stands between the lines "<!-- table NAME -->" and "<!-- /table -->".
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import intervals, peaks, recovery
from imagepiece_jax.common import statistics
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.statistics import Estimate, format_estimate
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluation.result_cache import decode_bits

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "results" / "results.json"
PAGES = ("README.md", "docs/results/imagepiece.md", "docs/results/peaks.md")
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

KINDS = ("merge", "drop", "random", "tome")  # ImagePiece and its controls
# {control, as the comparison called it: kind}
CONTROLS = {f"imagepiece {kind} (control)": kind for kind in KINDS[1:]}
# Kinds with accuracies in the table of controls, and compared pairs
SHOWN = {"merge": "ImagePiece", "drop": "dropping", "evit": "EViT"}
CONTRASTS = {
    "ImagePiece - dropping": ("merge", "drop"),
    "ImagePiece - random pairs": ("merge", "random"),
    "ImagePiece - ToMe's matching": ("merge", "tome"),
    "ImagePiece - EViT": ("merge", "evit"),
    "dropping - EViT": ("drop", "evit"),
}


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """Accuracy of a method in one setting. The interval is 95 %, [value, low, high]."""

    source: str  # name of its source
    method: str
    setting: Mapping[str, Any]
    gmacs: float
    acc1: list[float]
    tokens: int
    right: str  # which images, bits in base64 (`numpy.packbits`)
    share: float | None = None  # of the dense MACs, where methods are matched at it


@dataclasses.dataclass(frozen=True)
class Results:
    """All rows, and their sources by name."""

    sources: Mapping[str, Mapping[str, Any]]
    readme: Sequence[Mapping[str, Any]]  # the rows of README's table
    rows: Sequence[MethodResult]

    def of(self, study: str) -> list[MethodResult]:
        """The rows of a study: "comparison" or "controls"."""
        return [row for row in self.rows if self.sources[row.source]["study"] == study]

    def bits(self, row: MethodResult) -> np.ndarray:
        """The images that were right, bool [images]."""
        return decode_bits(row.right, self.sources[row.source]["images"])


def read_results() -> Results:
    """Read docs/results/results.json."""
    content = json.loads(FILE.read_text("utf-8"))
    rows = [MethodResult(**row) for row in content["results"]]
    return Results(content["sources"], content["readme"], rows)


def path_of_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """ImagePiece and its controls in the comparison, by share and kind."""
    kinds = {"imagepiece": KINDS[0]} | CONTROLS
    return by_share(results.of("comparison"), lambda row: kinds.get(row.method))


def fixed_controls(results: Results) -> dict[float, dict[str, MethodResult]]:
    """ImagePiece and its controls with merge ratio .08, by share and kind."""
    rows = results.of("controls")
    return by_share(rows, lambda row: row.setting.get("inattentive"))


def by_share(rows, kind_of) -> dict[float, dict[str, MethodResult]]:
    """Rows by share, largest first, and kind; rows without either are left out."""
    rows_by_share = {}
    for row in sorted(rows, key=lambda row: -(row.share or 0)):
        kind = kind_of(row)
        if kind and row.share:
            rows_by_share.setdefault(row.share, {})[kind] = row
    return rows_by_share


def controls_table(
    results: Results, at: Mapping[float, Mapping[str, MethodResult]]
) -> str:
    """ImagePiece beside its controls of the same token counts, and EViT.

    The last row has the means over the shares; their intervals are paired by image.
    """
    comparison = results.of("comparison")
    evit = {row.share: row for row in comparison if row.method == "evit"}
    rights = {kind: [] for kind in (*KINDS, "evit")}
    lines = []
    for share, variants in at.items():
        rows = {**variants, "evit": evit[share]}
        for kind, bits in rights.items():
            bits.append(results.bits(rows[kind]))
        setting = {"merge_ratio": 0.08, **variants["merge"].setting}
        line = [f"{share:g}", f"{setting['keep_rate']:g}, {setting['merge_ratio']:g}"]
        for kind in SHOWN:
            value, *_ = rows[kind].acc1
            line.append(f"{value:.1f}")
        for first, second in CONTRASTS.values():
            change = statistics.paired_difference(rights[first][-1], rights[second][-1])
            line.append(format_estimate(change, signs=True))
        lines.append(line)
    line = ["mean", ""]
    for kind in SHOWN:
        percent = 100 * np.mean(rights[kind])
        line.append(f"{percent:.1f}")
    for first, second in CONTRASTS.values():
        change = np.subtract(rights[first], rights[second], dtype=float)
        points = 100 * change.mean(axis=0)
        line.append(format_estimate(intervals.estimate_mean(points), signs=True))
    lines.append(line)
    head = ["share of the dense MACs", "keep, merge", *SHOWN.values(), *CONTRASTS]
    return markdown_table(head, lines)


def readme_table(results: Results) -> str:
    """Points lost and speed gained, by the typed setting."""
    lines = []
    for row in results.readme:
        line = [f"`{row['typed']}`", f"{row['multiply_adds']:.2f}"]
        line.append(format_estimate(Estimate(*row["lost"])))
        recovered = row.get("recovered")  # `recover` trains no smaller images
        line.append(format_estimate(Estimate(*recovered)) if recovered else "")
        line.append(f"{row['cpu'][0]:.2f}")
        line.append(f"{row['h200'][0]:.2f}" if "h200" in row else "")
        lines.append(line)
    head = ["typed", "multiply-adds", "points lost", "points lost, recovered"]
    return markdown_table([*head, "CPU", "H200, DeiT-S"], lines)


def readme_photographs(results: Results) -> str:
    """Which photographs README's table is about, and the dense model's accuracy."""
    image_count = results.sources[results.readme[0]["source"]]["images"]
    dense = peaks.Cell("deit", "photographs", "dense")
    accuracy = peaks.Lines(ROOT / peaks.FOLDER).mean(dense, "right")
    return (
        f"DeiT-Ti on {image_count} photographs with ImageNet's labels, none of them "
        "from ImageNet\n(NIPS 2017 adversarial competition). Dense, its first class is "
        f"right for {100 * accuracy:.1f} % of them."
    )


def page_tables(results: Results) -> dict[str, str]:
    """The tables of the pages, by the names that stand in their marks."""
    return {
        "readme": f"{readme_photographs(results)}\n\n{readme_table(results)}",
        "controls": controls_table(results, path_of_controls(results)),
        "controls-fixed": controls_table(results, fixed_controls(results)),
        "peaks-recovered": recovery.recovered_table(recovery.read_lines()),
        **peaks.page_tables(ROOT / peaks.FOLDER),
    }


def fill_tables(text: str, by_name: Mapping[str, str]) -> str:
    """A page's `text` with the tables between its marks."""

    def fill(part):
        start, name, end = part.groups()
        return f"{start}\n{by_name[name]}\n\n{end}"

    return MARKED.sub(fill, text)


def main():
    results = read_results()
    by_name = page_tables(results)
    for name in PAGES:
        path = ROOT / name
        replace_file(path, fill_tables(path.read_text("utf-8"), by_name))


if __name__ == "__main__":
    main()
