"""DPC-KNN: cluster tokens around density peaks (Zeng et al., TCFormer, CVPR 2022).

The variant follows the comparison by Haurum et al. 2023, "Which tokens to use?".
"""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import option
from imagepiece_jax.kernels import ranking
from imagepiece_jax.kernels.array_shapes import TokenIndices, TokenRows
from imagepiece_jax.kernels.similarity import squared_distances
from imagepiece_jax.reduction.block_plan import Step
from imagepiece_jax.reduction.methods.method import InStages, ModelFacts
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.state import Assignment


def cluster_by_density(x: TokenRows, num_neighbors: int, n_out: int) -> TokenIndices:
    """Cluster float32 tokens; clusters in the order of their centers.

    num_neighbors: nearest tokens, the token itself included
    Returns every token's cluster number.
    """
    # A token's density is exp(- mean squared distance to its nearest tokens). Centers
    # are the `n_out` tokens with the highest product of density and distance to the
    # nearest denser token.
    mean_squares = squared_distances(x) / x.shape[-1]  # [batch, tokens, tokens]
    is_near = ranking.mark_smallest(mean_squares, num_neighbors)
    # The density's logarithm: the density itself would be 0 for all distant tokens.
    log_density = -jnp.sum(jnp.where(is_near, mean_squares, 0), axis=-1) / num_neighbors
    distance = jnp.sqrt(mean_squares)
    is_denser = log_density[:, None, :] > log_density[:, :, None]
    max_distance = jnp.max(distance, axis=(1, 2))
    denser_distance = jnp.where(is_denser, distance, max_distance[:, None, None])
    separation = jnp.min(denser_distance, axis=-1)
    is_center = ranking.rank_tokens(log_density + jnp.log(separation)) < n_out
    nearness = jnp.where(is_center[:, None, :], -distance, -jnp.inf)
    _, nearest_center = ranking.find_first_largest(nearness)
    token = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    center_of_token = jnp.where(is_center, token, nearest_center)
    return ranking.count_kept_before(is_center, center_of_token)


@dataclasses.dataclass(frozen=True)
class DensityPeaks(Reducer):
    """Cluster tokens around density peaks, and replace clusters by their means."""

    neighbors: int = 5  # see `cluster_by_density`

    def __call__(self, inputs, counts, train=False):
        x = jax.lax.stop_gradient(inputs.x).astype(jnp.float32)
        num_neighbors = min(self.neighbors, counts.n_in)
        slot_of_token = cluster_by_density(x, num_neighbors, counts.n_out)
        return Assignment(slot_of_token, n_out=counts.n_out, by_size=False)


@dataclasses.dataclass(frozen=True)
class DpcKnn(InStages):
    """Before the s-th of `blocks`, replace n0 tokens by n0 * keep_rate**s clusters."""

    neighbors: int = option(5, least=1)  # tokens per density, the token itself included

    def steps(self, facts: ModelFacts) -> tuple[Step, ...]:
        return self.stage_steps(facts, DensityPeaks(self.neighbors), site="pre")
