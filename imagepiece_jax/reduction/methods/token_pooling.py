"""Token Pooling: replace tokens by clusters of them (Marin et al., WACV 2023).

Clusters are found by distances of the tokens themselves.
"""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.reduction.methods.method import InStages
from imagepiece_jax.reduction.ops import count_before, rank, squared_distances
from imagepiece_jax.reduction.reducers import Ranking
from imagepiece_jax.reduction.state import Assignment


@dataclasses.dataclass(frozen=True)
class KMedoids(Ranking):
    """Clusters tokens, and replaces each cluster by its medoid.

    A medoid is the member with the least weighted distance to the others; slots are in
    the order of the medoids. The first medoids are the most significant tokens. The
    significance of a token is its score, by default the attention that it receives in
    the block before.
    """

    iterations: int = 3
    score: str = dataclasses.field(default="received", kw_only=True)

    def __call__(self, taps, counts, train=False):
        x = jax.lax.stop_gradient(taps.x).astype(jnp.float32)
        score = jax.lax.stop_gradient(self.scores(taps, counts))
        is_medoid = rank(score) < counts.n_out
        # Scores can underflow to 0, and then all costs would be tied.
        tiny = jnp.finfo(jnp.float32).tiny
        weight = jnp.where(score > tiny, score, tiny)
        distance = jnp.sqrt(squared_distances(x))
        itself = jnp.arange(counts.n_in)
        earlier = (itself[:, None] > itself[None])[None]  # [1, n, n], j < i
        for _ in range(self.iterations):
            to_medoids = jnp.where(is_medoid[:, None, :], distance, jnp.inf)
            nearest = jnp.argmin(to_medoids, axis=-1)
            owner = jnp.where(is_medoid, itself[None], nearest)
            together = owner[:, :, None] == owner[:, None, :]
            # Weighted distance of each token to the members of its cluster.
            cost = jnp.where(together, weight[:, None, :] * distance, 0)
            cost = cost.sum(axis=-1)
            mine = cost[:, :, None]
            other = cost[:, None, :]
            better = (other < mine) | ((other == mine) & earlier)
            is_medoid = ~jnp.any(together & better, axis=-1)
        slot = jnp.where(is_medoid, count_before(is_medoid), 0)
        dest = jnp.where(together, slot[:, None, :], 0)
        dest = dest.sum(axis=-1, dtype=jnp.int32)
        weight = is_medoid.astype(jnp.float32)
        return Assignment(dest, weight, n_out=counts.n_out)


@dataclasses.dataclass(frozen=True)
class TokenPooling(InStages):
    """Before the s-th of `blocks`, n0 tokens become n0 * keep_rate**s clusters."""

    score: str = "received"  # the significance of tokens
    iterations: int = 3  # of the clustering

    def __post_init__(self):
        super().__post_init__()
        check_range("iterations", self.iterations, 1, whole=True)

    def steps(self, depth):
        reducer = KMedoids(self.iterations, score=self.score)
        return self.stages(reducer, site="pre")
