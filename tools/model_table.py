"""docs/results/parity.md, from parity tests' figures: python -m tools.model_table

Reads tests/fixtures/parity.jsonl, which the tests write:

    PARITY_RECORD=tests/fixtures/parity.jsonl python -m pytest tests/parity

and tests/fixtures/whole_models.json of tools/fixtures.py. The last row of a model or
original counts.
"""

import json
import pathlib

from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.models import registry
from imagepiece_jax.reduction import contract, reducers

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEASURED = ROOT / "tests" / "fixtures" / "parity.jsonl"
WHOLE = ROOT / "tests" / "fixtures" / "whole_models.json"
OUT = ROOT / "docs" / "results" / "parity.md"
PACKAGES = ("jax", "timm", "transformers", "torch")
FAMILIES = ["family", "model by timm's name", "scores of tokens", "parameters"]
FAMILIES += ["logits", "tokens"]
ORIGINALS = ["model", "logits"]
LARGEST = ["model by timm's name", "parameters", "published", "source"]


def newest_rows(rows, field):
    """The last row of each value of `field` and each name, in the rows' order."""
    newest = {(row[field], row.get("name")): row for row in rows if field in row}
    return [*newest.values()]


def package_versions(rows):
    """The packages of the rows' measurements, with all their versions."""
    rows = [*rows]
    named = []
    for package in PACKAGES:
        measured_with = dict.fromkeys(row[package] for row in rows if package in row)
        if measured_with:
            named.append(f"{package} {' and '.join(measured_with)}")
    return ", ".join(named)


def of_families(rows):
    """The table of families."""
    cells = []
    for row in rows:
        fields = "".join(f", {k} {v}" for k, v in row.get("fields", {}).items())
        apart = [f"{row[key]:.1e}" for key in ("logits", "tokens")]
        name = f"`{row['name']}`{fields}"
        count = f"{row['parameters']:,}"
        cells.append([row["family"], name, token_scores(row["name"]), count, *apart])
    return markdown_table(FAMILIES, cells)


def token_scores(name):
    """The scores that can rank tokens of a public model."""
    arch = registry.model_config(name).arch
    lacking = contract.list_missing_parts(arch.class_token, arch.pool)
    available = []
    for score, field in reducers.SCORES.items():
        if score != "auto" and field not in lacking:
            available.append(score)
    return ", ".join(available)


def of_originals(rows):
    """The table of other libraries' checkpoints."""
    cells = [[f"`{row['original']}`", f"{row['logits']:.1e}"] for row in rows]
    return markdown_table(ORIGINALS, cells)


def of_largest(models):
    """The table of the largest members."""
    cells = []
    for name, row in models.items():
        counts = f"{row['parameters']:,}", _format_count(row["published"])
        cells.append([f"`{name}`", *counts, row["source"]])
    return markdown_table(LARGEST, cells)


def _format_count(count):
    if count >= 1e9:
        return f"{count / 1e9:.4g} billion"
    return f"{count / 1e6:.4g} million"


def parity_page(measured, largest):
    """The whole page, Markdown."""
    families = newest_rows(measured, "family")
    stored = newest_rows(measured, "original")
    parts = [
        "# Models, measured",
        "Written by `python -m tools.model_table` for [models](../models.md).",
        "## Families",
        "Full width, random weights, float32 with the highest precision of products. "
        "Parameters count the compared model, whose head and stated depth may differ "
        "from the published one. The last two columns are the largest difference to "
        "timm's model, relative to the largest absolute value; tests allow 1e-4. "
        f"Versions: {package_versions(families)}.",
        of_families(families),
        "## Other libraries' checkpoints",
        "Checkpoints with each project's names, reduced in width and depth, random "
        "weights. Differences are the largest to the output of the project's own "
        "model, relative to the largest absolute value. Versions: "
        f"{package_versions(stored)}.",
        of_originals(stored),
        "## The largest member of each family",
        "Built from names and shapes alone: every timm tensor has its place, and our "
        "model has as many parameters (tests/models/test_registry.py).",
        of_largest(largest),
    ]
    return "\n\n".join(parts) + "\n"


def main():
    lines = MEASURED.read_text("utf-8").splitlines()
    largest = json.loads(WHOLE.read_text("utf-8"))
    OUT.write_text(parity_page([json.loads(line) for line in lines], largest), "utf-8")
    print(OUT)


if __name__ == "__main__":
    main()
