"""Clusters of tokens against SciPy's, and against slow loops."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial import distance

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.atc import LINKAGES, join_closest_clusters
from imagepiece_jax.reduction.methods.dpc_knn import cluster_by_density
from imagepiece_jax.reduction.methods.token_pooling import KMedoids
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import oracles, tiny_vit
from tests.helpers.reduction_steps import apply, decide

join_clusters = tiny_vit.jit(join_closest_clusters, static_argnums=(1, 2))


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("num_clusters", [1, 7, 20, 29, 30])
def test_atc_equals_scipy(linkage, num_clusters):
    x = np.random.default_rng(num_clusters).normal(size=(3, 30, 4))
    distances = np.stack([distance.cdist(image, image, "cosine") for image in x])
    slots = np.asarray(join_clusters(np.float32(distances), 30 - num_clusters, linkage))
    for slot, apart in zip(slots, distances, strict=True):
        tree = hierarchy.linkage(distance.squareform(apart, checks=False), linkage)
        cluster = hierarchy.fcluster(tree, num_clusters, "maxclust")
        np.testing.assert_array_equal(
            slot[:, None] == slot, cluster[:, None] == cluster
        )
        assert all(slot[token] == token for token in set(slot))
        assert (slot <= np.arange(30)).all()


def test_atc_merges_the_lower_of_equally_distant_tokens():
    distances = np.float32(1 - np.eye(4))[None]
    assert join_clusters(distances, 2, "average").tolist() == [[0, 0, 0, 3]]


def slow_dpc_knn(x, neighbors, n_out):
    """Slot of each token, in float64. [n, D] -> [n]."""
    n, dim = x.shape
    distances = np.array([[np.linalg.norm(a - b) for b in x] for a in x]) / np.sqrt(dim)
    density = [np.exp(-np.mean(sorted(row**2)[:neighbors])) for row in distances]
    score = []
    for i in range(n):
        denser = [distances[i, j] for j in range(n) if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else distances.max()))
    centers = np.sort(np.argsort(-np.asarray(score), kind="stable")[:n_out])
    slots = np.argmin(distances[:, centers], axis=1)
    slots[centers] = np.arange(n_out)
    return slots


@pytest.mark.parametrize(
    "neighbors, n_out, scale",
    # At scale 15 float32 could not tell densities from 0.
    [(5, 12, 1), (1, 3, 1), (30, 1, 1), (4, 29, 1), (5, 12, 15)],
)
def test_dpc_knn_equals_slow_loops(neighbors, n_out, scale):
    x = np.float32(scale * np.random.default_rng(n_out).normal(size=(3, 30, 6)))
    run = tiny_vit.compiled(cluster_by_density, static_argnums=(1, 2))
    slow_slots = [slow_dpc_knn(image.astype(float), neighbors, n_out) for image in x]
    np.testing.assert_array_equal(run(x, neighbors, n_out), slow_slots)


def pool(x, weight, n_out, iterations=3):
    """The Assignment of tokens x [B, n, D] with the scores `weight`."""
    inputs = ReducerInputs(x, np.ones(x.shape[:2], np.float32), attn_columns=weight)
    return decide(KMedoids(iterations), inputs, StepCounts(x.shape[1], n_out))


def slow_kmedoids(x, weight, n_out, iterations=3):
    """[n, D], [n] -> medoids in order, slot of each token [n]."""
    distance = np.linalg.norm(np.float64(x[:, None]) - x, axis=-1)
    medoids = sorted(oracles.by_score(weight)[:n_out])
    for _ in range(iterations):
        clusters = {medoid: [medoid] for medoid in medoids}
        for i in range(len(x)):
            if i not in clusters:
                clusters[min(medoids, key=lambda m: (distance[i, m], m))].append(i)
        members_of_medoid = {}
        for members in clusters.values():
            # The member with the smallest sum of weighted distances to all of them.
            costs = {i: sum(weight[members] * distance[i, members]) for i in members}
            members_of_medoid[min(members, key=lambda i: (costs[i], i))] = members
        medoids = sorted(members_of_medoid)
    slots = np.full(len(x), -1)
    for slot, medoid in enumerate(medoids):
        slots[members_of_medoid[medoid]] = slot
    return medoids, slots


def check(x, weight, n_out, iterations=3, prefix=0):
    """`pool` against slow clustering, medoids and prefix bit for bit."""
    result = pool(x[:, prefix:], weight, n_out, iterations)
    state = apply(initial_state(jnp.asarray(x), prefix), result)
    assert state.x.dtype == x.dtype
    for image in range(len(x)):
        tokens = np.asarray(x[image, prefix:], np.float32)
        medoids, slots = slow_kmedoids(tokens, weight[image], n_out, iterations)
        np.testing.assert_array_equal(result.slot_of_token[image], slots)
        np.testing.assert_array_equal(state.size[image, prefix:], np.bincount(slots))
        stay = [*range(prefix), *(prefix + medoid for medoid in medoids)]
        np.testing.assert_array_equal(state.x[image], x[image][stay])


def random_tokens(n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, n, 5)).astype(np.float32)
    return x, rng.uniform(0.1, 3, size=(3, n)).astype(np.float32)


@pytest.mark.parametrize(
    "n, n_out, iterations, prefix, dtype",
    [
        (1, 1, 3, 0, "float32"),
        (7, 7, 3, 0, "float32"),
        (19, 2, 1, 2, "float32"),
        (30, 9, 5, 1, "bfloat16"),
    ],
)
def test_token_pooling_equals_slow_loops(n, n_out, iterations, prefix, dtype):
    x, weight = random_tokens(prefix + n)
    check(x.astype(jnp.dtype(dtype)), weight[:, prefix:], n_out, iterations, prefix)


def test_token_pooling_breaks_ties_by_the_lower_index():
    """Tokens on a line at whole numbers: most distances, weights and costs are tied."""
    rng = np.random.default_rng(0)
    x = np.zeros((20, 16, 2), np.float32)
    x[..., 0] = rng.integers(0, 6, size=(20, 16))
    x[0] = 1  # the first medoids keep themselves, the others go to the first
    check(x, rng.integers(1, 4, size=(20, 16)).astype(np.float32), 7)


def test_token_pooling_sees_small_differences_beside_a_large_offset():
    """Squares of 1,000 have steps of 0.06 in float32; the tokens are 0.01 apart."""
    x, weight = random_tokens(25)
    check(np.float32(1000 + 0.01 * x), weight, 8)
    chex.assert_trees_all_equal(pool(x, weight, 6), pool(x, weight * 2.0**-90, 6))
