"""PiToMe: merge what there is much of, by energy (Tran et al., NeurIPS 2024)."""

import dataclasses
import math

import jax
import numpy as np

from imagepiece_jax.common.fields import rate, switch
from imagepiece_jax.reduction.layer_plan import Step
from imagepiece_jax.reduction.methods.method import Method, metric
from imagepiece_jax.reduction.ops import invert, rank
from imagepiece_jax.reduction.reducers import Ranking, join_most_similar, merge_in_place
from imagepiece_jax.reduction.token_counts import MergeTo


@dataclasses.dataclass(frozen=True)
class ByEnergy(Ranking):
    """Tokens of high energy, which are like many others, merge in pairs.

    Ordered by falling energy they alternate between two sides. protect: only as many of
    the first as merge are looked at, and all of side A merge into the most similar of
    side B; else all are, and those of A merge that are most similar to theirs.
    """

    protect: bool
    metric: str = "key"
    score: str = dataclasses.field(default="energy", kw_only=True)

    def __call__(self, taps, counts, train=False):
        unlike = jax.lax.stop_gradient(self.scores(taps, counts))
        metric = jax.lax.stop_gradient(taps.metric)
        merges = counts.n_in - counts.n_out
        order = rank(-unlike)
        matched = 2 * merges if self.protect else counts.n_in
        sides = (invert(order, np.arange(side, matched, 2)) for side in (0, 1))
        joining = None if self.protect else merges
        absorbed, partners = join_most_similar(metric, *sides, joining)
        return merge_in_place(absorbed, partners, counts)


@dataclasses.dataclass(frozen=True)
class PiToMe(Method):
    """Every block keeps ceil(keep_rate * n) of its n image tokens, at least half.

    The first half of the blocks matches all tokens, the second protects low energies.
    """

    keep_rate: float = rate(0.9125)  # of the image tokens, in every block
    late_first: bool = switch(False)  # the halves exchanged, as its authors do with MAE
    metric: str = metric()  # after energies of keys

    def steps(self, depth):
        half = math.ceil(depth / 2)
        steps = []
        for block in range(depth):
            reducer = ByEnergy((block >= half) != self.late_first, self.metric)
            steps.append(Step(block, reducer, MergeTo(self.keep_rate)))
        return tuple(steps)
