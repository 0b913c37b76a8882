"""The figures of docs that show what a table or a file of results has.

python -m experiments.figures

draws them again: saliency.png and parts.png of docs; bundles.png, masking.png and
hyperspeed.png of docs/tables. Studies whose scripts are here draw their own.
"""

import re
from collections.abc import Iterator, Mapping

from experiments import hyperspeed, masking, parts, results
from imagepiece_jax.common import plotting
from imagepiece_jax.evaluate import compare_tables
from imagepiece_jax.evaluate.statistics import Estimate

DOCS = results.ROOT / "docs"
PAPER = DOCS / "tables" / "paper.md"
SALIENCY = DOCS / "tables" / "saliency.md"
Curves = Mapping[str, list[tuple[float, Estimate]]]


def rows(path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of the tables of a page that have these columns, {column: cell}."""
    head = None
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head = cells
        elif cells[0] != "---" and {*columns} <= {*head}:
            yield dict(zip(head, cells, strict=True))


def estimate(cell: str) -> Estimate:
    """The numbers in "81.1 [77.5, 84.6]"."""
    return Estimate(*map(float, re.findall(r"[-+]?\d+\.\d+", cell)))


def saliency() -> Curves:
    """IoU by the share of the dense model's MACs."""
    curves = {}
    # The other tables of the page have other fills.
    for row in rows(SALIENCY, "IoU", "IoU, to ImagePiece"):
        if not row["share"]:  # no method
            continue
        name = row["method"].strip("`")
        if row["dropped patches get"]:
            name += ", nearest"
        point = float(row["share"]), estimate(row["IoU"])
        curves.setdefault(name, []).append(point)
    return curves


def masks() -> Curves:
    """Accuracy by the number of squares that cover an image."""
    columns = {f"{count} masks": count for count in masking.COUNTS}
    curves = {}
    for row in rows(PAPER, "figure", *columns):
        if row["figure"] == "acc1, % (measured)":
            points = [(count, estimate(row[name])) for name, count in columns.items()]
            curves[row["model"]] = points
    return curves


def rates() -> tuple[Curves, float]:
    """(accuracy by GMACs, without retraining; accuracy of the dense model)."""
    curves = {}
    for row in rows(PAPER, "method", "rate", "acc1, %"):
        point = float(row["GMACs"]), estimate(row["acc1, %"])
        curves.setdefault(row["method"], []).append(point)
    difference = estimate(row["to dense, points"])
    return curves, round(point[1].value - difference.value, 1)


def main():
    plotting.draw_curves(
        DOCS / "saliency.png",
        "share of the dense MACs",
        "IoU to dense maps",
        saliency(),
        references=("tome", "random, nearest"),
        xticks=(0.4, 0.5, 0.6, 0.75, 0.9),
    )
    masking.draw(PAPER.parent / "masking.png", masks())
    curves, dense = rates()
    path = PAPER.parent / "hyperspeed.png"
    hyperspeed.draw(path, "GMACs an image", curves, dense)
    parts.draw(DOCS / "parts.png", parts.measured_cells(parts.read_points()))
    found = results.read_results(results.FILE.read_text("utf-8"))
    compare_tables.draw_plot(results.PLOT, results.comparison_report(found))


if __name__ == "__main__":
    main()
