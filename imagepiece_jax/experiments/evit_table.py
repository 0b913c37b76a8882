"""EViT's own table: how does accuracy fall with the keep rate, fused or dropped?"""

from imagepiece_jax.experiments import published
from imagepiece_jax.experiments.render import page
from imagepiece_jax.experiments.rows import DENSE, Row, measure, notes, table

KINDS = (("fused", True), ("dropped", False))


def row(rate, kind, fuse):
    return Row(f"keep {rate}, {kind}", reduction(rate, fuse))


def reduction(rate, fuse):
    return {"name": "evit", "keep_rate": rate, "fuse_token": fuse}


ROWS = (DENSE, *(row(rate, *kind) for rate in published.EVIT for kind in KINDS))


def run(lab):
    """Measure every rate that there is a model for, and write evit-table.md."""
    printed = {
        row(rate, *kind).name: (acc1, None)
        for rate, both in published.EVIT.items()
        for kind, acc1 in zip(KINDS, both, strict=True)
    }
    found = measure(lab, ROWS, matched=False)
    page(
        lab,
        "evit-table",
        "EViT by keep rate",
        table(ROWS, found, printed, "DeiT-S, EViT's authors"),
        notes(lab, found),
    )
