"""ImagePiece: merge what says little, judge it again, then prune (AAAI 2025)."""

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import METRICS, Retokenize, TopK
from imagepiece_jax.reduction.schedule import (
    Step,
    check_blocks,
    check_choice,
    check_rate,
    check_switch,
    rounded,
)

SCHEDULES = ("A", "B")


def blocks_of(schedule, depth):
    """(merge blocks, prune blocks) of schedule "A" or "B": merge, merge, prune,
    repeated.

    "B" counts the paper's layer numbers from one, "A" takes them as block indices; the
    reported speeds speak for "B". Both leave the last blocks alone: depth // 4 - 1 full
    cycles after the first, three in all at depth 12.
    """
    check_choice("schedule", schedule, SCHEDULES)
    cycles = depth // 4
    if cycles == 0:
        raise InputError(
            f"config.reduction.schedule is {schedule!r}, which needs a depth of 4 or "
            f"more, found {depth}: name config.reduction.merge_blocks and prune_blocks"
        )
    first = 1 if schedule == "A" else 0
    merge = tuple(first + 3 * c + i for c in range(cycles) for i in (0, 1))
    return merge, tuple(first + 3 * c + 2 for c in range(cycles))


def recipe(
    depth,
    keep_rate=0.8,
    merge_ratio=0.08,
    candidate_ratio=0.3,
    schedule="B",
    merge_blocks=None,
    prune_blocks=None,
    merge_base="all",
    order="descending",
    parity=0,
    metric="key",
    size_weighting=True,
    round_to=0,
):
    """Merge steps over the least attended tokens, then prune steps by class attention.

    keep_rate: share of image tokens that a prune step keeps; candidate_ratio: share
    that counts as meaning little; merge_ratio: share merged away, of all tokens (class
    token included) or, by merge_base="candidates", of the candidates; in any case
    at most half of the candidates merge, into the other half. merge_blocks and
    prune_blocks, where given, override `schedule`; round_to: every step leaves a
    multiple of so many tokens (0: off). The rest goes to `Retokenize`.
    """
    rates = {
        "merge_ratio": merge_ratio,
        "candidate_ratio": candidate_ratio,
        "keep_rate": keep_rate,
    }
    merge_ratio, candidate_ratio, keep_rate = (
        check_rate(name, value) for name, value in rates.items()
    )
    check_choice("schedule", schedule, SCHEDULES)
    check_choice("merge_base", merge_base, ("all", "candidates"))
    check_choice("order", order, ("descending", "ascending"))
    check_choice("parity", parity, (0, 1))
    check_choice("metric", metric, METRICS)
    check_switch("size_weighting", size_weighting)
    if merge_blocks is None or prune_blocks is None:
        merges, prunes = blocks_of(schedule, depth)
        merge_blocks = merges if merge_blocks is None else merge_blocks
        prune_blocks = prunes if prune_blocks is None else prune_blocks
    merge_blocks = check_blocks("merge_blocks", merge_blocks)
    prune_blocks = check_blocks("prune_blocks", prune_blocks)
    reducer = Retokenize(order, parity, metric, size_weighting)
    amount = (merge_ratio, candidate_ratio, merge_base)
    merge = [Step(block, reducer, "merge", amount) for block in merge_blocks]
    prune = [Step(block, TopK(), "keep", keep_rate) for block in prune_blocks]
    steps = sorted(merge + prune, key=lambda step: step.block)
    return rounded(steps, round_to)


METHOD = Method(recipe=recipe)
