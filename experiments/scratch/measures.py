"""Further figures of a run: harsher rates, masks, merged pairs.

Everything is of the trained model, without further training: accuracy at lower keep
rates, accuracy behind random masks (the paper's table 4), and for ImagePiece
the measures of tables 5, 6 and 8.
"""

import functools

import numpy as np

from experiments import analysis, masking, merges, published
from experiments.context import Answers, Context
from experiments.scratch.systems import System

PAPER_PATCHES = 196  # of the images that the paper's masks cover, a mask a patch
DIGITS = 5


def measure(context: Context, weights, system: System, seed: int) -> dict:
    """Fields of a run's JSON: "harsher", "masked" and "merges".

    weights: of the run; masks are drawn by (seed, image): all systems of a seed have
    the same.
    """
    reduction, patch = weights.reduction, weights.config.patch_size
    counts = mask_counts(context.images.image_size // patch)
    cover = functools.partial(masking.cover, square=patch)

    def masked(count):
        prepare = functools.partial(
            masking.with_corners,
            count=count,
            seed=seed,
            square=patch,
            most=max(counts),
        )
        return context.evaluate(
            weights,
            reduction,
            alteration={"masks": count, "square": patch, "mask_seed": seed},
            alter=cover,
            prepare=prepare,
        )

    return {
        "harsher": {
            f"{rate:g}": figures(
                context.evaluate(weights, {**reduction, "keep_rate": rate})
            )
            for rate in system.harsher
        },
        "masked": {str(count): figures(masked(count)) for count in counts},
        "merges": _merges(context, weights, reduction),
    }


def _merges(context, weights, reduction):
    """The measures of the tables by their names; {} of what merges no candidates."""
    steps = merges.sites(weights.config.create(reduction))
    if not any(step.merges and step.counts.candidates for step in steps):
        return {}
    measured = {
        "reassess": analysis.attentive_ratios(context, weights, reduction),
        "similarity": analysis.first_and_last(context, weights, reduction),
        "lcb-similarity": analysis.first_merge(context, weights, reduction),
    }
    return {
        name: _rounded({k: v for k, v in each.items() if k != "images"})
        for name, each in measured.items()
    }


def mask_counts(side: int) -> tuple[int, ...]:
    """The paper's numbers of masks at the same share of side * side patches."""
    share = side * side / PAPER_PATCHES
    return tuple(dict.fromkeys(max(1, round(m * share)) for m in published.MASKS))


def figures(result: Answers) -> dict:
    """Accuracy, and which images were right: bits in the set's order, as hex."""
    right = np.packbits(result.right).tobytes().hex()
    return {"acc1": result["acc1"], "right": right}


def _rounded(value):
    """Estimates as lists, of as many digits as they mean."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [round(float(number), DIGITS) for number in value]
    return value
