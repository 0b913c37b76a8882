"""Schedules: how many image tokens are left after each block, in plain Python.

A schedule has a shape and a ratio: 0 keeps all tokens, 1 as few as the shape allows.
`models.reduction_plan` finds the ratio for a cost. The tokens of each step, by counts
or by the rules of fields such as `keep_rate`, are in `block_plan`.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.errors import InputError

# Image tokens after each block of a model of 12 blocks and PATCHES patches.
PATCHES = 196
# ImagePiece: keep .8, merge .08, schedule B. Source: spec of the AAAI 2025 paper.
IMAGEPIECE = (180, 165, 132, 121, 111, 89, 81, 74, 60, 60, 60, 60)
# DiffRate: its list for DeiT-Ti at 0.8 GMACs, after merging. Source: methods/diffrate.
DIFFRATE = (196, 195, 189, 171, 153, 124, 106, 95, 83, 77, 69, 2)


def constant(depth, ratio, start=0):
    """Share left after each block, if each from `start` on loses the same number."""
    return [1 - ratio * max(0, block + 1 - start) for block in range(depth)]


def proportional(depth, ratio, start=0):
    """Share left after each block, if each from `start` on loses the same share."""
    return [(1 - ratio) ** max(0, block + 1 - start) for block in range(depth)]


def stages(depth, ratio, *blocks):
    """Share left after each block, if each of `blocks` loses the same share."""
    blocks = blocks or (3, 6, 9)
    shares = []
    for block in range(depth):
        passed = [stage for stage in blocks if stage <= block]
        shares.append((1 - ratio) ** len(passed))
    return shares


def late(depth, ratio, power=2.0):
    """Share left after each block, if the lost share rises as (block / depth)^power.

    power: above 0; with 1 every block loses an equal share of the initial tokens
    Source: Later Is Better, 2026, arXiv 2610.07758.
    """
    return [1 - ratio * ((block + 1) / depth) ** power for block in range(depth)]


def powered_shares(shares: Sequence[float], ratio: float) -> list[float]:
    """The shares of a schedule at another ratio, from 0 to 1.

    At 0 all tokens stay, and at 0.5 the given shares. At 1 a share below 1 becomes 0.
    Each share is raised to the power ratio / (1 - ratio).
    """
    if ratio >= 1:
        return [float(share == 1) for share in shares]
    power = ratio / (1 - ratio)
    return [share**power for share in shares]


def stretched(counts, depth, ratio):
    """Shares after each of `depth` blocks, by the counts of a model of 12 blocks.

    counts: its image tokens after each block, of PATCHES at first; interpolated for
        another depth
    ratio: 0.5 gives the counts' own shares, others a power of them
    """
    points = [PATCHES, *counts]
    shares = []
    for block in range(depth):
        position = (block + 1) * len(counts) / depth
        below = min(math.floor(position), len(counts) - 1)
        part = position - below
        count = points[below] * (1 - part) + points[below + 1] * part
        shares.append(count / points[0])
    return powered_shares(shares, ratio)


# {name: function (depth, ratio, *numbers) -> share that stays after each block}
SHAPES: dict[str, Callable[..., list[float]]] = {
    "constant": constant,
    "proportional": proportional,
    "stages": stages,
    "imagepiece": functools.partial(stretched, IMAGEPIECE),
    "diffrate": functools.partial(stretched, DIFFRATE),
    "late": late,
}
# How many numbers a schedule's text may have; "stages" may have any, others none.
MAX_NUMBERS = {"constant": 1, "proportional": 1, "late": 1}
POWERED = "late"  # the schedule whose number is a power; those of others are blocks
ALLOWED = (
    f"{', '.join(SHAPES)}, with numbers such as proportional-1 (from block 1), "
    "stages-3-6-9 (blocks that rise) and late-2 (a power above 0), or a list of whole "
    "numbers, one for each block, that do not rise"
)


def split_text(text: str) -> tuple[str, tuple[float, ...]]:
    """(name of the shape, its numbers) from text such as "stages-3-6-9".

    Raises InputError for a text that names no schedule.
    """
    name, *texts = text.split("-")
    form = "[0-9]+"
    kind = int
    if name == POWERED:
        form = "[0-9]*[.]?[0-9]+(e[0-9]+)?"
        kind = float
    fits = name in SHAPES and all(re.fullmatch(form, each) for each in texts)
    numbers = tuple(map(kind, texts)) if fits else ()
    if name == "stages":
        fits = fits and [*numbers] == sorted({*numbers})
    else:
        fits = fits and len(numbers) <= MAX_NUMBERS.get(name, 0)
    if not fits or (name == POWERED and 0 in numbers):
        raise InputError(f"counts is {text!r}; it must be one of {ALLOWED}")
    return name, numbers


def counts_of(text: str, depth: int, patches: int, ratio: float) -> tuple[int, ...]:
    """Number of image tokens after each block by a schedule, at least one.

    text: a schedule, such as "stages-3-6-9"
    depth: number of blocks of the model
    patches: number of image tokens before the first block
    ratio: from 0, where all tokens stay, to 1
    Raises InputError for a block that a model of `depth` blocks does not have.
    """
    name, numbers = split_text(text)
    for block in numbers:
        if block >= depth and name != POWERED:
            raise InputError(
                f"counts is {text!r}; the model has blocks 0 to {depth - 1}"
            )
    shares = SHAPES[name](depth, ratio, *numbers)
    return tuple(max(1, rounded(share * patches)) for share in shares)


def rounded(number: float) -> int:
    """The nearest whole number; of a half the higher, whatever binary rounding does."""
    return math.floor(number + 0.5 + 1e-9)


def check_counts(value: str | tuple[int, ...]) -> None:
    """Check that it is a schedule's text, or counts that do not rise.

    value: of the field `counts`
    """
    if isinstance(value, str):
        split_text(value)
        return
    if not isinstance(value, tuple) or not value:
        raise InputError(f"counts is {value!r}; it must be one of {ALLOWED}")
    for count in value:
        check_range("an entry of counts", count, least=1, whole=True)
    for block, (before, after) in enumerate(itertools.pairwise(value), start=1):
        if after > before:
            raise InputError(
                f"counts is {value}; it must not rise, as it does at block {block}"
            )
