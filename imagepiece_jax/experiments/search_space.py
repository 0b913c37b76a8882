"""Search space of reductions. A shape is all of one but its rate, which a budget sets.

Published are the forms that the papers compare, each at the rate that the budget
leaves. The others move their blocks, spread ToMe's merges otherwise, and turn the
switches of ImagePiece and of its combination with ToMe.
"""

import itertools
import random

from imagepiece_jax.experiments import match_cost
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece

PUBLISHED = (
    {"name": "tome"},
    {"name": "evit"},
    {"name": "evit", "fuse_token": True},
    {"name": "imagepiece"},
    {"name": "imagepiece", "prune_blocks": ()},
    {"name": "imagepiece_tome"},
    {"name": "random"},
)
CANDIDATE_RATIOS = (0.3, 0.5, 0.7, 1.0)
MERGE_RATIOS = (0.02, 0.04, 0.06, 0.08)


def rates(shape: dict, depth: int) -> list[dict]:
    """All rates of a shape, as reductions. "blocks" of ToMe are where it merges."""
    if shape["name"] == "tome" and "blocks" in shape:
        first, end = shape["blocks"]
        own = {k: v for k, v in shape.items() if k != "blocks"}
        return [
            own | {"r_list": (0,) * first + (r,) * (end - first)} for r in range(1, 80)
        ]
    return match_cost.settings(shape, depth)


def shapes(depth: int, seed: int = 0) -> list[dict]:
    """Shapes beside the published ones, in random order.

    The families alternate, so that the first few shapes have them all.
    """
    families = [_tome(depth), _evit(depth), _imagepiece(depth), _combined(depth)]
    draw = random.Random(seed)
    for family in families:
        draw.shuffle(family)
    turns = itertools.zip_longest(*families)
    return [shape for turn in turns for shape in turn if shape is not None]


def _tome(depth):
    windows = [
        (first, end)
        for first in range(0, depth // 2, max(1, depth // 12))
        for end in range(depth // 2, depth + 1, max(1, depth // 6))
        if (first, end) != (0, depth) and end > first
    ]
    found = [{"name": "tome", "blocks": window} for window in windows]
    tilts = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
    found += [{"name": "tome", "inflection": tilt} for tilt in tilts]
    return [
        shape | more
        for shape in found
        for more in ({}, {"metric": "token"}, {"prop_attn": False})
    ]


def _evit(depth):
    third = depth // 4
    cuts = [tuple(range(first, depth, third)) for first in range(1, third + 1)]
    cuts += [tuple(range(first, depth, 2)) for first in (1, 2, 3)]
    cuts += [tuple(range(first, depth)) for first in (0, 2, 4)]
    found = []
    for blocks in dict.fromkeys(cuts):
        found += [{"name": "evit", "blocks": blocks}]
        found += [{"name": "evit", "blocks": blocks, "fuse_token": True}]
    return found


def _places(depth):
    """Fields that say where ImagePiece merges and prunes: A, B, and B moved back."""
    found = [{"schedule": "B"}, {"schedule": "A"}]
    merges, prunes = ImagePiece().scheduled_blocks(depth)
    for later in (2, 3):
        if prunes[-1] + later < depth:
            found.append(
                {
                    "merge_blocks": tuple(block + later for block in merges),
                    "prune_blocks": tuple(block + later for block in prunes),
                }
            )
    return found


def _imagepiece(depth):
    mix = itertools.product(_places(depth), CANDIDATE_RATIOS, MERGE_RATIOS)
    found = []
    for place, candidates, merges in mix:
        shape = {"name": "imagepiece", **place}
        shape |= {"candidate_ratio": candidates, "merge_ratio": merges}
        found += [shape, shape | {"prop_attn": True}]
    merges = tuple(range(depth))
    return found + [
        {"name": "imagepiece", "merge_blocks": merges[first:], "prune_blocks": ()}
        | {"candidate_ratio": candidates, "prop_attn": True}
        for first in (0, 1, 2, 3)
        for candidates in CANDIDATE_RATIOS
    ]


def _combined(depth):
    """ImagePiece + ToMe: as ImagePiece with pruning, bipartite merges in its place."""
    found = [shape for shape in _imagepiece(depth) if shape.get("prune_blocks") != ()]
    return [shape | {"name": "imagepiece_tome"} for shape in found]
