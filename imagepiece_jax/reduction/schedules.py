"""Schedules: shares of image tokens left after the blocks, in plain Python.

A schedule has a shape and a ratio: 0 keeps all tokens, 1 as few as the shape allows.
`models.create` finds the ratio for a cost, and `block_plan` counts a step's
tokens.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.errors import InputError

# The two lists below hold image tokens after the blocks of a model with 12 blocks and
# DEIT_PATCHES patches.
DEIT_PATCHES = 196
# ImagePiece: keep .8, merge .08, schedule B. Source: spec of the AAAI 2025 paper.
IMAGEPIECE_COUNTS = (180, 165, 132, 121, 111, 89, 81, 74, 60, 60, 60, 60)
# DiffRate: its list for DeiT-Ti at 0.8 GMACs, after merging. Source: methods/diffrate.
DIFFRATE_COUNTS = (196, 195, 189, 171, 153, 124, 106, 95, 83, 77, 69, 2)


def constant_shares(depth: int, ratio: float, start: int = 0) -> list[float]:
    """Shares after the blocks; every block from `start` on loses an equal number."""
    return [1 - ratio * max(0, index + 1 - start) for index in range(depth)]


def proportional_shares(depth: int, ratio: float, start: int = 0) -> list[float]:
    """Shares after the blocks; every block from `start` on loses an equal share."""
    return [(1 - ratio) ** max(0, index + 1 - start) for index in range(depth)]


def staged_shares(depth: int, ratio: float, *blocks: int) -> list[float]:
    """Shares after the blocks; every block in `blocks` loses an equal share."""
    blocks = blocks or (3, 6, 9)  # the methods' default, for a text without blocks
    shares = []
    for block_index in range(depth):
        past_blocks = [block for block in blocks if block <= block_index]
        shares.append((1 - ratio) ** len(past_blocks))
    return shares


def powered_shares(shares: Sequence[float], ratio: float) -> list[float]:
    """Raise shares to the power ratio / (1 - ratio), for a ratio from 0 to 1.

    At 0 all tokens stay, at 0.5 shares are unchanged, at 1 a share below 1 becomes 0.
    """
    if ratio >= 1:
        return [float(share == 1) for share in shares]
    power = ratio / (1 - ratio)
    return [share**power for share in shares]


def stretched_shares(counts: Sequence[int], depth: int, ratio: float) -> list[float]:
    """Stretch a schedule for DEIT_PATCHES patches to shares after `depth` blocks.

    counts: image tokens after the blocks, interpolated for another depth
    ratio: see `powered_shares`
    """
    points = [DEIT_PATCHES, *counts]
    shares = []
    for block_index in range(depth):
        position = (block_index + 1) * len(counts) / depth
        below = min(math.floor(position), len(counts) - 1)  # the last point has no next
        fraction = position - below
        count = points[below] * (1 - fraction) + points[below + 1] * fraction
        shares.append(count / DEIT_PATCHES)
    return powered_shares(shares, ratio)


# {name: function (depth, ratio, *blocks) -> shares of tokens after the blocks}
SCHEDULE_SHAPES: dict[str, Callable[..., list[float]]] = {
    "constant": constant_shares,
    "proportional": proportional_shares,
    "stages": staged_shares,
    "imagepiece": functools.partial(stretched_shares, IMAGEPIECE_COUNTS),
    "diffrate": functools.partial(stretched_shares, DIFFRATE_COUNTS),
}
# Most blocks in a schedule's text, 0 if not listed
MAX_BLOCKS = {"constant": 1, "proportional": 1, "stages": math.inf}
ALLOWED_COUNTS = (
    f"{', '.join(SCHEDULE_SHAPES)}, with blocks such as proportional-1 (from block 1) "
    "and stages-3-6-9 (blocks that rise), or a list of whole numbers, one for each "
    "block, that do not rise"
)


def split_schedule(schedule: str) -> tuple[str, tuple[int, ...]]:
    """Split a schedule's text such as "stages-3-6-9" into (name, blocks).

    Raises InputError for an invalid schedule.
    """
    name, *block_texts = schedule.split("-")
    # `int` alone would read "3_6" as 36.
    blocks = tuple(int(text) for text in block_texts if re.fullmatch("[0-9]+", text))
    is_valid = name in SCHEDULE_SHAPES and len(blocks) == len(block_texts)
    is_valid = is_valid and len(blocks) <= MAX_BLOCKS.get(name, 0)
    if not is_valid or [*blocks] != sorted({*blocks}):
        raise InputError(f"counts is {schedule!r}; it must be one of {ALLOWED_COUNTS}")
    return name, blocks


def scheduled_counts(
    schedule: str, depth: int, num_patches: int, ratio: float
) -> tuple[int, ...]:
    """Compute image token counts after the blocks, at least 1, from a schedule.

    schedule: such as "stages-3-6-9"
    num_patches: image tokens before the first block
    ratio: from 0 (all tokens stay) to 1
    Raises InputError for a block outside the model.
    """
    shape_name, blocks = split_schedule(schedule)
    if max(blocks, default=0) >= depth:
        raise InputError(f"counts is {schedule!r}, but the model has {depth} blocks")
    shares = SCHEDULE_SHAPES[shape_name](depth, ratio, *blocks)
    return shares_to_counts(shares, num_patches)


def shares_to_counts(shares: Sequence[float], num_patches: int) -> tuple[int, ...]:
    """Turn shares of the patches into image token counts, at least 1."""
    return tuple(max(1, round_half_up(share * num_patches)) for share in shares)


def find_falls(counts: Sequence[int], num_patches: int) -> dict[int, int]:
    """Find the blocks where `counts` fall: {block: image tokens after it}."""
    count_pairs = enumerate(itertools.pairwise((num_patches, *counts)))
    return {index: after for index, (before, after) in count_pairs if after < before}


def round_half_up(number: float) -> int:
    """Round to the nearest whole number, halves up, immune to binary rounding."""
    return math.floor(number + 0.5 + 1e-9)


def check_counts(counts: str | tuple[int, ...]) -> None:
    """Raise InputError unless `counts` is a schedule's text, or non-rising counts."""
    if isinstance(counts, str):
        split_schedule(counts)
        return
    if isinstance(counts, tuple) and counts:
        for count in counts:
            check_range("an entry of counts", count, least=1, whole=True)
        if [*counts] == sorted(counts, reverse=True):
            return
    raise InputError(f"counts is {counts!r}; it must be one of {ALLOWED_COUNTS}")
