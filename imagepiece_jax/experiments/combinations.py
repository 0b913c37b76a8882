"""Table 9: what does ImagePiece add to the methods that it can be combined with?

The paper's combinations have the convolutional stem and what they are compared with
has not; here each stands beside its own with either stem.
"""

import dataclasses

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import render, table1, table2
from imagepiece_jax.experiments.rows import DENSE, Row, present

PAIRS = (
    (
        table1.DYNAMICVIT,
        Row("ImagePiece + DynamicViT", {"name": "imagepiece_dynamicvit"}, "conv"),
    ),
    (table2.TOME, Row("ImagePiece + ToMe", {"name": "imagepiece_tome"}, "conv")),
    (table1.EVIT, Row("ImagePiece + EViT", {"name": "imagepiece"}, "conv")),
)


def with_stem(row, stem):
    """The same with this stem; its name says so where it is not the paper's."""
    if row.stem == stem:
        return row
    return dataclasses.replace(row, name=f"{row.name}, {stem} stem", stem=stem)


CONTESTS = tuple(
    (with_stem(alone, stem), with_stem(combined, stem))
    for stem in ("patch", "conv")
    for alone, combined in PAIRS
)
ROWS = (DENSE, *(row for contest in CONTESTS for row in contest))


def run(lab):
    """Measure every row that there is a model for, and write combos.md."""
    present(lab, "combos", "ImagePiece added to other methods", ROWS, more=(gains,))


def gains(found):
    """Table of what each combination gains, on the same images."""
    lines = []
    for alone, combined in CONTESTS:
        pair = found[alone.name], found[combined.name]
        if None in pair or any(m.facts["untrained_selectors"] for m in pair):
            continue
        rights = [[each.right for each in measured.answers] for measured in pair]
        gain = statistics.paired_difference(rights[1], rights[0])
        costs = [f"{measured.facts['gmacs']:.3f}" for measured in pair]
        lines.append([alone.name, *costs, statistics.format_difference(gain)])
    if not lines:
        return ""
    head = ["added to", "its GMACs", "combined", "gain, points (paired)"]
    return render.table(head, lines)
