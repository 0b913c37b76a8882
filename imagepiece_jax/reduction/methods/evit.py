"""EViT: keep what the class token attends to (Liang et al., ICLR 2022)."""

from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import TopK, TopKFuse
from imagepiece_jax.reduction.schedule import Step, check_blocks, check_rate


def recipe(depth, keep_rate=0.7, blocks=(3, 6, 9), fuse_token=False):
    """At each of `blocks` keep ceil(keep_rate * n) tokens; `fuse_token` adds one more.

    The fused token is the attention-weighted sum of the dropped ones. ImagePiece's
    paper compares with the form without it.
    """
    keep_rate = check_rate("keep_rate", keep_rate)
    reducer, rule = (TopKFuse(), "keep_fuse") if fuse_token else (TopK(), "keep")
    return tuple(
        Step(block, reducer, rule, keep_rate)
        for block in check_blocks("blocks", blocks)
    )


METHOD = Method(recipe=recipe)
