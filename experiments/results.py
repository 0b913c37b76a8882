"""Tables of the pages, from the figures of docs/results.

python -m experiments.results

A row of results.json has README's figures for a typed setting, and names its sources:
model, weights, data, versions, commit and command. A table of a page stands between the
lines "<!-- table NAME -->" and "<!-- /table -->".
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import peaks, recovery, where
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.statistics import Estimate, format_estimate
from imagepiece_jax.common.tables import markdown_table

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "results" / "results.json"
PAGES = ("README.md", "docs/results/peaks.md", "docs/results/recovery.md")
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Results:
    """The rows of README's table, and their sources by name."""

    sources: Mapping[str, Mapping[str, Any]]
    readme: Sequence[Mapping[str, Any]]


def read_results():
    """Read docs/results/results.json."""
    return Results(**json.loads(FILE.read_text("utf-8")))


def readme_table(results):
    """Points lost and speed gained, by the typed setting."""
    lines = []
    for row in results.readme:
        line = [f"`{row['typed']}`", f"{row['multiply_adds']:.2f}"]
        line.append(format_estimate(Estimate(*row["lost"])))
        line.append("not recovered")  # `recover` trains reduced models only
        if "recovered" in row:
            line[-1] = format_estimate(Estimate(*row["recovered"]))
        line.append(f"{row['cpu'][0]:.2f}")
        line.append(f"{row['h200'][0]:.2f}" if "h200" in row else "not timed")
        lines.append(line)
    head = ["typed", "multiply-adds", "points lost", "points lost, recovered"]
    return markdown_table([*head, "CPU", "H200, DeiT-S"], lines)


def readme_photographs(results):
    """Which photographs README's table is about, and the dense model's accuracy."""
    image_count = results.sources[results.readme[0]["source"]]["images"]
    dense = peaks.Cell("deit", "photographs", "dense")
    accuracy = peaks.Lines(ROOT / peaks.FOLDER).mean(dense, "right")
    return (
        f"DeiT-Ti on {image_count} photographs with ImageNet's labels, none of them "
        "from ImageNet\n(NIPS 2017 adversarial competition). Dense, its first class is "
        f"right for {100 * accuracy:.1f} % of them."
    )


def page_tables(results):
    """The tables of the pages, by the names that stand in their marks."""
    return {
        "readme": f"{readme_photographs(results)}\n\n{readme_table(results)}",
        "peaks-recovered": recovery.recovered_table(recovery.read_lines()),
        "recovery-cells": recovery.cells_table(recovery.read_lines()),
        **peaks.page_tables(ROOT / peaks.FOLDER),
        **where.page_tables(ROOT / peaks.FOLDER),
    }


def fill_tables(text, by_name):
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
