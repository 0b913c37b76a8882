"""ATC: agglomerative clustering of tokens (Haurum et al., ECCV 2024).

The two most similar clusters merge repeatedly, until enough tokens have left.
"""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels.array_shapes import TokenIndices, TokenPairs
from imagepiece_jax.kernels.ranking import find_first_largest, gather_rows
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.reduction.block_plan import Step
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts
from imagepiece_jax.reduction.reducers import Reducer, merge_into

# {name: function (a, b, m, n) -> distances of a joined cluster}; a and b are the
# distances of its two parts [B, n], m and n the token counts of the parts [B, 1].
LINKAGES = {
    "single": lambda a, b, m, n: jnp.minimum(a, b),
    "complete": lambda a, b, m, n: jnp.maximum(a, b),
    "average": lambda a, b, m, n: (m * a + n * b) / (m + n),
}
# The distance of what may not join; cosine distances are at most 2. Infinity would
# become NaN in a product that picks a row.
FAR_DISTANCE = 4.0


def join_closest_clusters(
    distance: TokenPairs, num_merges: int, linkage: str
) -> TokenIndices:
    """Join the two closest clusters `num_merges` times; ties go to the first pair.

    distance: symmetric
    Returns the first token of every token's cluster.
    """
    batch, num_tokens, _ = distance.shape
    token = jnp.arange(num_tokens, dtype=jnp.int32)[None]
    link_distances = LINKAGES[linkage]

    def merge_pair(_, carry):
        """Join the closest pair; a cluster is stored at its first token's index."""
        distance, first_token, size = carry  # [batch, N, N], [batch, N], [batch, N]
        _, pair_index = find_first_largest(-distance.reshape(batch, -1))
        # Cluster b, the cluster with the later first token, becomes a part of a. `//`
        # would be nine operations.
        cluster_a = jax.lax.div(pair_index[:, None], jnp.int32(num_tokens))
        cluster_b = pair_index[:, None] - num_tokens * cluster_a
        is_a = token == cluster_a
        is_b = token == cluster_b
        is_a_or_b = is_a | is_b
        row_a = gather_rows(distance, cluster_a)[:, 0]
        row_b = gather_rows(distance, cluster_b)[:, 0]
        size_a = gather_rows(size, cluster_a)
        size_b = gather_rows(size, cluster_b)
        linked_distance = link_distances(row_a, row_b, size_a, size_b)
        new_row = jnp.where(is_a_or_b, FAR_DISTANCE, linked_distance)
        distance = jnp.where(is_a[:, :, None], new_row[:, None, :], distance)
        distance = jnp.where(is_a[:, None, :], new_row[:, :, None], distance)
        is_of_b = is_b[:, :, None] | is_b[:, None, :]
        size = jnp.where(is_a, size + gather_rows(size, cluster_b), size)
        return (
            jnp.where(is_of_b, FAR_DISTANCE, distance),
            jnp.where(first_token == cluster_b, cluster_a, first_token),
            size,
        )

    is_itself = token[:, :, None] == token[:, None, :]
    initial_carry = (
        jnp.where(is_itself, FAR_DISTANCE, distance),
        jnp.broadcast_to(token, (batch, num_tokens)),
        jnp.ones((batch, num_tokens), jnp.float32),
    )
    _, first_token, _ = jax.lax.fori_loop(0, num_merges, merge_pair, initial_carry)
    return first_token


@dataclasses.dataclass(frozen=True)
class Agglomeration(Reducer):
    """Cluster tokens by cosine distance, and replace clusters by their means."""

    # The distance of two clusters is the distance of their nearest members ("single")
    # or farthest members ("complete"), or the mean over all pairs ("average").
    linkage: str = "complete"
    metric: str = "key"
    size_weighting: bool = True  # whether means are over patches, not over tokens
    needed_inputs = frozenset({"metric"})

    def __call__(self, inputs, counts, train=False):
        metric = jax.lax.stop_gradient(inputs.metric)
        distance = 1 - cosine_similarity(metric, metric)
        num_merges = counts.n_in - counts.n_out
        first_token = join_closest_clusters(distance, num_merges, self.linkage)
        assignment = merge_into(first_token, counts.n_out)
        return dataclasses.replace(assignment, by_size=self.size_weighting)


@dataclasses.dataclass(frozen=True)
class ATC(InStages):
    """At the s-th of `blocks`, replace n0 tokens by n0 * keep_rate**s clusters."""

    # The authors weight by size where they use proportional attention.
    default_prop_attn = True

    linkage: str = option("complete", tuple(LINKAGES))  # distance between clusters
    metric: str = "key"
    size_weighting: bool = option(True, (True, False))  # means are over patches

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        reducer = Agglomeration(self.linkage, self.metric, self.size_weighting)
        return self.stage_steps(facts, reducer)
