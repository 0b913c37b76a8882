"""Token Pooling: cluster tokens by their own distances (Marin et al., WACV 2023)."""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels import ranking
from imagepiece_jax.kernels.similarity import squared_distances
from imagepiece_jax.reduction.block_plan import Step
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts
from imagepiece_jax.reduction.reducers import Ranking
from imagepiece_jax.reduction.state import Assignment


@dataclasses.dataclass(frozen=True)
class KMedoids(Ranking):
    """Cluster tokens, and replace clusters by their medoids.

    A medoid is the member with the least score-weighted distance to its cluster. The
    first medoids are the highest-scored tokens. The default score is the attention
    received in the block before.
    """

    iterations: int = 3
    score: str = dataclasses.field(default="received", kw_only=True)

    def __call__(self, inputs, counts, train=False):
        x = jax.lax.stop_gradient(inputs.x).astype(jnp.float32)
        score = jax.lax.stop_gradient(self.token_scores(inputs, counts))
        is_medoid = ranking.rank_tokens(score) < counts.n_out
        # A score can underflow to 0. Zero scores would tie all costs.
        tiny = jnp.finfo(jnp.float32).tiny
        weight = jnp.where(score > tiny, score, tiny)
        distance = jnp.sqrt(squared_distances(x))  # [batch, tokens, tokens]
        token = jnp.arange(counts.n_in)
        # [1, tokens, tokens], whether the second of a pair stands before the first
        is_earlier = (token[:, None] > token[None])[None]
        for _ in range(self.iterations):
            nearness = jnp.where(is_medoid[:, None, :], -distance, -jnp.inf)
            _, nearest_medoid = ranking.find_first_largest(nearness)
            medoid_of_token = jnp.where(is_medoid, token[None], nearest_medoid)
            in_same_cluster = medoid_of_token[:, :, None] == medoid_of_token[:, None, :]
            # Weighted distance from every token to its cluster's members.
            costs = jnp.where(in_same_cluster, weight[:, None, :] * distance, 0)
            cost = costs.sum(axis=-1)
            first_cost, second_cost = cost[:, :, None], cost[:, None, :]  # of a pair
            is_second_better = second_cost < first_cost
            is_second_better |= (second_cost == first_cost) & is_earlier
            is_medoid = ~jnp.any(in_same_cluster & is_second_better, axis=-1)
        # Slots are in the order of the medoids, and have the medoids' features.
        medoid_slot = jnp.where(is_medoid, ranking.count_kept_before(is_medoid), 0)
        member_slot = jnp.where(in_same_cluster, medoid_slot[:, None, :], 0)  # pyrefly: ignore[unbound-name]
        slot_of_token = member_slot.sum(axis=-1, dtype=jnp.int32)
        return Assignment(slot_of_token, weight=is_medoid, n_out=counts.n_out)


@dataclasses.dataclass(frozen=True)
class TokenPooling(InStages):
    """Before the s-th of `blocks`, replace n0 tokens by n0 * keep_rate**s medoids."""

    score: str = "received"  # weighs distances and chooses the first medoids
    iterations: int = option(3, least=1)  # clustering rounds

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        reducer = KMedoids(self.iterations, score=self.score_for(facts))
        return self.stage_steps(facts, reducer, site="pre")
