"""Which schedule the paper's own speeds support: arithmetic on published figures.

ImagePiece's authors give no code. Their table 5 names layers 2, 3, 5, 6, 8 and 9, each
of which follows a merge: counted from one that is schedule B, as indices from zero A.
The time of a model is taken to be its blocks' MACs at the dense model's rate, and an
overhead; the rows of the other methods say how large that overhead should be: what
EViT and ToMe take beyond their MACs, divided by the number of their steps.

The published speeds are in `published.ACCURACY_SPEED`: img/s on one RTX 3090.
"""

import functools
import math
from typing import NamedTuple

from experiments import controls, paper_tables, published
from imagepiece_jax.models.cost import model_macs

SPEEDS = {name: row[1] for name, row in published.ACCURACY_SPEED["deit_s"].items()}
MERGES = 6  # of ImagePiece
PRUNES = 3  # of ImagePiece, and of EViT
MERGES_OF_TOME = 12
LATER = "imagepiece_later"  # ImagePiece by schedule A
RATES = {0.8: "ImagePiece", 0.6: "ImagePiece, keep .6"}
# The settings that the rows of the paper's tables are taken to have; then others that
# some of them might have.
COMBINED = [row for _, row in paper_tables.PAIRS[3:]]  # ImagePiece added: conv stem
PAPER = (*paper_tables.TABLE1, *paper_tables.TABLE2, *paper_tables.TABLE3, *COMBINED)
ROWS = {row.name: row for row in PAPER if SPEEDS.get(row.name)}
OTHERS = tuple(
    paper_tables.TableRow(
        row.name, row.reduction.replace("imagepiece", LATER), row.stem
    )
    for row in (ROWS[name] for name in RATES.values())
)


class Overhead(NamedTuple):
    """Milliseconds an image beyond the blocks' MACs, by published speeds."""

    rate: float  # ms a GMAC of the dense model
    prune: float  # a step of EViT's
    merge: float  # a step of ToMe's
    stem: float  # the MACs that the convolutional stem has more
    predicted: float  # ImagePiece's expected time beyond its blocks' MACs
    tome_instead: float  # what ImagePiece + ToMe adds: merges in place of its prunes


def milliseconds(name: str) -> float:
    """Published time of one image of DeiT-S with this row's reduction."""
    return 1000 / SPEEDS[name]


@controls.registered()
def gmacs(row: paper_tables.TableRow) -> float:
    """GMACs of DeiT-S at 224 pixels."""
    return model_macs(paper_tables.deit_s(row)) / 1e9


@functools.cache
def overhead() -> Overhead:
    """Times of a step and of the stem, by the paper's rows of DeiT, EViT and ToMe."""
    dense = gmacs(paper_tables.DENSE)
    rate = milliseconds("DeiT") / dense
    evit = milliseconds("EViT") - rate * gmacs(ROWS["EViT"])
    tome = milliseconds("ToMe") - rate * gmacs(ROWS["ToMe"])
    prune = evit / PRUNES
    merge = tome / MERGES_OF_TOME
    stem = rate * (gmacs(paper_tables.DENSE_CONV) - dense)
    return Overhead(
        rate=rate,
        prune=prune,
        merge=merge,
        stem=stem,
        predicted=stem + PRUNES * prune + MERGES * merge,
        tome_instead=PRUNES * (merge - prune),
    )


def implied(schedule: str, keep_rate: float) -> float:
    """Milliseconds beyond the blocks' MACs if ImagePiece had this schedule."""
    method = {"A": LATER, "B": "imagepiece"}[schedule]
    reduction = f"{method}:keep_rate={keep_rate}"
    name = RATES[keep_rate]
    blocks = overhead().rate * gmacs(paper_tables.TableRow(name, reduction))
    return milliseconds(name) - blocks


def efficiency(row: paper_tables.TableRow) -> float:
    """Published speed in MACs a second, as a share of the dense model's."""
    return overhead().rate * gmacs(row) / milliseconds(row.name)


ROUNDINGS = {
    "floor": lambda x: math.floor(x + 1e-9),
    "round": lambda x: math.floor(x + 0.5),
    "ceil": lambda x: math.ceil(x - 1e-9),
}
BASES = {
    "image tokens": lambda n, candidates: n,
    "all tokens": lambda n, candidates: n + 1,
    "candidates": lambda n, candidates: candidates,
}


def tokens_left(merge: str, base: str, prune: str, keep_rate: float = 0.6) -> int:
    """Tokens after ImagePiece's nine steps, class token included, by this rounding."""
    n = 196
    for step in "mmp" * 3:
        if step == "m":
            candidates = ROUNDINGS["floor"](0.3 * n)
            merged = ROUNDINGS[merge](0.08 * BASES[base](n, candidates))
            n -= min(merged, candidates // 2)
        else:
            n = ROUNDINGS[prune](keep_rate * n)
    return n + 1
