"""EViT: keep the tokens most attended by the class token (Liang et al., ICLR 2022)."""

import dataclasses
import math

from imagepiece_jax.common.checks import option
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.block_plan import KeepShare, Step
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts, training_field
from imagepiece_jax.reduction.reducers import TopK


@dataclasses.dataclass(frozen=True)
class EViT(InStages):
    """At every block in `blocks`, keep the ceil(keep_rate * n) most attended tokens."""

    # whether one more token is the score-weighted sum of the leaving tokens
    fuse_token: bool = option(False, (True, False))
    score: str = "auto"
    # number of first epochs with all tokens, then of epochs until keep_rate is reached
    rate_warmup_start: float = training_field(0.0, least=0)
    rate_warmup_epochs: float = training_field(0.0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.counts is not None and self.rate_warmup_epochs:
            raise InputError("rate_warmup_epochs needs keep_rate, not counts")

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        reducer = TopK(self.fuse_token, score=self.score_for(facts))
        rule = KeepShare(self.keep_rate, self.fuse_token)
        return self.stage_steps(facts, reducer, rule)

    def rate_at(self, epoch: int) -> float:  # pyrefly: ignore[bad-override]
        # The rate is 1 at first, then falls to keep_rate by a cosine. EViT's authors
        # change it in every step (start 10, 100 epochs). A change per epoch needs fewer
        # compiled programs.
        start = self.rate_warmup_start
        num_epochs = self.rate_warmup_epochs
        if num_epochs == 0 or epoch >= start + num_epochs:
            return self.keep_rate
        progress = max(0.0, (epoch - start) / num_epochs)
        fall = 0.5 * (1 - math.cos(math.pi * progress))
        return 1 - (1 - self.keep_rate) * fall
