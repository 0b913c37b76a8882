"""EViT: keep what the class token attends to (Liang et al., ICLR 2022)."""

import math

from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import TopK, TopKFuse
from imagepiece_jax.reduction.schedule import (
    Step,
    check_blocks,
    check_rate,
    check_switch,
    check_weight,
    rounded,
)


def recipe(depth, keep_rate=0.7, blocks=(3, 6, 9), fuse_token=False, round_to=0):
    """At each of `blocks` keep ceil(keep_rate * n) tokens; `fuse_token` adds one more.

    The fused token is the attention-weighted sum of the dropped ones. ImagePiece's
    paper compares with the form without it. round_to: every step leaves a multiple of
    so many tokens (0: off).
    """
    keep_rate = check_rate("keep_rate", keep_rate)
    check_switch("fuse_token", fuse_token)
    reducer, rule = (TopKFuse(), "keep_fuse") if fuse_token else (TopK(), "keep")
    blocks = check_blocks("blocks", blocks)
    steps = [Step(block, reducer, rule, keep_rate) for block in blocks]
    return rounded(steps, round_to)


def rate_at(epoch, keep_rate=0.7, rate_warmup_start=0, rate_warmup_epochs=0):
    """Keep rate of an epoch: 1 until `rate_warmup_start`, then by a cosine to
    keep_rate.

    EViT's authors change it every iteration (start 10, 100 epochs); by epoch there are
    fewer programs to compile: at most one an epoch. Without `rate_warmup_epochs` it is
    keep_rate from the first.
    """
    start = check_weight("rate_warmup_start", rate_warmup_start)
    length = check_weight("rate_warmup_epochs", rate_warmup_epochs)
    if length == 0 or epoch >= start + length:
        return keep_rate
    progress = max(0.0, (epoch - start) / length)
    fall = 0.5 * (1 - math.cos(math.pi * progress))
    return 1 - (1 - keep_rate) * fall


METHOD = Method(recipe=recipe, rate_at=rate_at)
