"""Token Pooling: replace tokens by clusters of them (Marin et al., WACV 2023).

Clusters are found by distances of the tokens themselves.
"""

import dataclasses

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.reduction.methods.method import InStages
from imagepiece_jax.reduction.ops import count_before, rank, squared_distances
from imagepiece_jax.reduction.reducers import Ranking
from imagepiece_jax.reduction.state import DROPPED, Assignment, slot_index


@dataclasses.dataclass(frozen=True)
class Clustering(Ranking):
    """Base of both algorithms, which start from the most significant tokens.

    The significance of a token is its score, by default the attention that it receives
    in the block before. An algorithm has a method `cluster`, from squared distances of
    tokens, their significance, and which tokens clusters start from, to the slot of
    each token and its weight.
    """

    iterations: int = 3
    score: str = dataclasses.field(default="received", kw_only=True)

    def __call__(self, taps, counts, train=False):
        x = jax.lax.stop_gradient(taps.x).astype(jnp.float32)
        score = jax.lax.stop_gradient(self.scores(taps, counts))
        is_start = rank(score) < counts.n_out
        # Scores can underflow to 0, but the weights of a cluster need a sum above 0.
        tiny = jnp.finfo(jnp.float32).tiny
        weight = jnp.where(score > tiny, score, tiny)
        squares = squared_distances(x)
        dest, weight = self.cluster(squares, weight, is_start, counts.n_out)
        index = slot_index(dest, counts.n_out)
        return Assignment(dest, weight, index=index, n_out=counts.n_out)


class KMedoids(Clustering):
    """Replaces a cluster by its member with the least weighted distance to the others.

    Slots are in the order of these members.
    """

    def cluster(self, squares, weight, is_medoid, n_out):
        distance = jnp.sqrt(squares)
        index = jnp.arange(squares.shape[1])
        earlier = (index[:, None] > index[None])[None]  # [1, n, n], j < i
        for _ in range(self.iterations):
            to_medoids = jnp.where(is_medoid[:, None, :], distance, jnp.inf)
            itself = index[None]
            nearest = jnp.argmin(to_medoids, axis=-1)
            owner = jnp.where(is_medoid, itself, nearest)
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
        return dest, is_medoid.astype(jnp.float32)


class KMeans(Clustering):
    """Replaces a cluster by the mean of its members, weighted by significance.

    Slots are in the order of the tokens from which the centers started.
    """

    def cluster(self, squares, weight, is_start, n_out):
        slot = count_before(is_start)
        slots = jnp.arange(n_out, dtype=jnp.int32)[None, :, None]
        dest = jnp.where(is_start, slot, DROPPED)  # a center is one token at first
        for _ in range(self.iterations):
            belongs = dest[:, None, :] == slots
            share = jnp.where(belongs, weight[:, None, :], 0)
            share = share / jnp.sum(share, axis=-1, keepdims=True)
            distances = _to_means(squares, share)
            nearest = jnp.argmin(distances, axis=1).astype(jnp.int32)
            dest = jnp.where(is_start, slot, nearest)  # so that no cluster is empty
        return dest, weight


def _to_means(squares, share):
    """Squared distances of means to tokens. [B, n, n], [B, k, n] -> [B, k, n].

    The means themselves are not needed, because for shares p, q that add up to 1
    |x - sum p a|^2 = sum p |x - a|^2 - sum p q |a - b|^2 / 2.
    """
    outer = jnp.einsum("bkj,bji->bki", share, squares, precision="highest")
    inner = jnp.sum(share * outer, axis=-1, keepdims=True) / 2
    return outer - inner


ALGORITHMS = {"kmedoids": KMedoids, "kmeans": KMeans}


@dataclasses.dataclass(frozen=True)
class TokenPooling(InStages):
    """Before the s-th of `blocks`, n0 tokens become n0 * keep_rate**s clusters."""

    algorithm: str = "kmedoids"  # or "kmeans"
    score: str = "received"  # the significance of tokens
    iterations: int = 3  # iterations of the algorithm

    def __post_init__(self):
        super().__post_init__()
        check_choice("algorithm", self.algorithm, tuple(ALGORITHMS))
        check_range("iterations", self.iterations, 1, whole=True)

    def steps(self, depth):
        reducer = ALGORITHMS[self.algorithm](self.iterations, score=self.score)
        return self.stages(reducer, site="pre")
