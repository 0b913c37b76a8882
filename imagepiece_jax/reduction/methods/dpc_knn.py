"""DPC-KNN: cluster tokens around density peaks (Zeng et al., TCFormer, CVPR 2022).

As in the comparison of Haurum et al. 2023, "Which tokens to use?".
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.fields import count, switch
from imagepiece_jax.reduction import ops
from imagepiece_jax.reduction.methods.method import InStages
from imagepiece_jax.reduction.reducers import Reducer
from imagepiece_jax.reduction.tokens import Assignment, slot_index


def density_peaks(x, neighbors, n_out):
    """Slot of each token, slots in the order of their centers. -> [B, n] int32.

    Density is exp of minus the mean squared distance to the nearest tokens; centers are
    the `n_out` tokens with the highest products of density and distance to the next
    token of a higher density.

    x: [B, n, D] float32
    neighbors: how many tokens are the nearest, the token itself among them
    """
    squares = ops.squared_distances(x) / x.shape[-1]
    near = ops.smallest(squares, neighbors)
    # Its logarithm: far apart, all densities would be 0.
    density = -jnp.sum(jnp.where(near, squares, 0), axis=-1) / neighbors
    distance = jnp.sqrt(squares)
    denser = density[:, None, :] > density[:, :, None]
    farthest = jnp.max(distance, axis=(1, 2))
    apart = jnp.where(denser, distance, farthest[:, None, None])
    apart = jnp.min(apart, axis=-1)
    center = ops.rank(density + jnp.log(apart)) < n_out
    away = jnp.where(center[:, None, :], distance, jnp.inf)
    nearest = jnp.argmin(away, axis=-1).astype(jnp.int32)
    itself = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    owner = jnp.where(center, itself, nearest)
    return ops.gather_rows(ops.count_before(center), owner)


@dataclasses.dataclass(frozen=True)
class DensityPeaks(Reducer):
    """Cluster around density peaks; a cluster becomes the plain mean of its members."""

    clusters = True

    neighbors: int = 5

    def __call__(self, taps, counts, train=False):
        x = jax.lax.stop_gradient(taps.x).astype(jnp.float32)
        dest = density_peaks(x, min(self.neighbors, counts.n_in), counts.n_out)
        weight = jnp.ones_like(taps.size)
        index = slot_index(dest, counts.n_out)
        return Assignment(dest, weight=weight, index=index, n_out=counts.n_out)


class WeighedPeaks(nn.Module, Reducer):
    """`DensityPeaks`, with means weighted by exp of a learned score."""

    neighbors: int = 5

    @nn.compact
    def __call__(self, taps, counts, train=False):
        x = taps.x.astype(jnp.float32)
        score = nn.Dense(1, name="score")(x)[..., 0]
        clusters = DensityPeaks(self.neighbors)(taps, counts, train)
        return clusters.replace(weight=jnp.exp(score))

    @nn.nowrap
    def extra_macs(self, n_in, embed_dim, num_heads):
        return n_in * embed_dim


@dataclasses.dataclass(frozen=True)
class DpcKnn(InStages):
    """Before the s-th of `blocks`, cluster into keep_rate ** s of the first count."""

    neighbors: int = count(5, least=1)  # in a token's density, itself included
    learned_weights: bool = switch(False)  # True: of the members, for training

    def steps(self, depth):
        kind = WeighedPeaks if self.learned_weights else DensityPeaks
        return self.stages(kind(self.neighbors), site="pre")
