"""EViT: keep what the class token attends to (Liang et al., ICLR 2022)."""

import dataclasses
import math
from typing import Any, ClassVar

from imagepiece_jax.common.fields import blocks, choice, rate, switch, weight
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.reducers import SCORES, TopK
from imagepiece_jax.reduction.token_counts import Keep


@dataclasses.dataclass(frozen=True)
class EViT(Method):
    """At each of `blocks` keep ceil(keep_rate * n) tokens; `fuse_token` adds one more.

    The fused token is the attention-weighted sum of the dropped ones. ImagePiece's
    paper compares with the form without it.
    """

    amounts: ClassVar[tuple[str, ...]] = ("keep_rate", "blocks")
    small: ClassVar[dict[str, Any]] = {"blocks": (1, 2)}

    keep_rate: float = rate(0.7)  # of the image tokens, at each of `blocks`
    blocks: tuple[int, ...] = blocks(3, 6, 9)
    fuse_token: bool = switch(False)  # the dropped ones become one more token
    # "class" attention, or what else ranks the tokens: "received", "energy", "shift",
    # "probe" (docs/models.md); "auto": "class" where there is a class token.
    score: str = choice("auto", tuple(SCORES))
    # Epochs that keep all tokens, then so many to get to keep_rate.
    rate_warmup_start: float = weight(0.0, training=True)
    rate_warmup_epochs: float = weight(0.0, training=True)

    def __post_init__(self):
        super().__post_init__()
        if self.counts is not None and self.rate_warmup_epochs:
            problem = f"is {self.rate_warmup_epochs:g}, but counts has no rate"
            self.refuse("rate_warmup_epochs", "0", problem)

    def steps(self, depth):
        reducer = TopK(self.fuse_token, score=self.score)
        rule = Keep(self.keep_rate, self.fuse_token)
        return tuple(Step(block, reducer, rule) for block in self.blocks)

    def rate_at(self, epoch):
        """Keep rate of an epoch: 1 until the start, then by a cosine to keep_rate.

        EViT's authors change it every iteration (start 10, 100 epochs); by epoch there
        are fewer programs to compile: at most one an epoch. Without
        `rate_warmup_epochs` it is keep_rate from the first.
        """
        start, length = self.rate_warmup_start, self.rate_warmup_epochs
        if length == 0 or epoch >= start + length:
            return self.keep_rate
        progress = max(0.0, (epoch - start) / length)
        fall = 0.5 * (1 - math.cos(math.pi * progress))
        return 1 - (1 - self.keep_rate) * fall
