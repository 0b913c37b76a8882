import chex
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.token_pooling import KMedoids
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import oracles
from tests.helpers.reduction_steps import apply, decide


def pool(x, weight, n_out, iterations=3):
    """The Assignment of tokens x [B, n, D] with the scores `weight`."""
    size = np.ones(x.shape[:2], np.float32)
    inputs = ReducerInputs(x=x, size=size, attn_columns=weight)
    counts = StepCounts(x.shape[1], n_out)
    return decide(KMedoids(iterations=iterations), inputs, counts)


def slow_kmedoids(x, weight, k, iterations=3):
    """[n, D], [n] -> medoids in order, dest [n]."""
    distance = np.linalg.norm(np.float64(x[:, None]) - x, axis=-1)
    medoids = sorted(oracles.by_score(weight)[:k])
    for _ in range(iterations):
        clusters = {m: [m] for m in medoids}
        for i in range(len(x)):
            if i not in clusters:
                clusters[min(medoids, key=lambda m: (distance[i, m], m))].append(i)
        found = {}
        for members in clusters.values():
            # The member with the smallest sum of weighted distances to all of them.
            costs = {i: sum(weight[members] * distance[i, members]) for i in members}
            found[min(members, key=lambda i: (costs[i], i))] = members
        medoids = sorted(found)
    dest = np.full(len(x), -1)
    for slot, medoid in enumerate(medoids):
        dest[found[medoid]] = slot
    return medoids, dest


def check(x, weight, n_out, iterations=3, prefix=0):
    """`pool` against slow clustering, medoids and prefix bit for bit."""
    result = pool(x[:, prefix:], weight, n_out, iterations)
    state = apply(initial_state(jnp.asarray(x), prefix), result)
    assert state.x.dtype == x.dtype
    for image in range(len(x)):
        tokens = np.asarray(x[image, prefix:], np.float32)
        medoids, want = slow_kmedoids(tokens, weight[image], n_out, iterations)
        np.testing.assert_array_equal(result.slot_of_token[image], want)
        np.testing.assert_array_equal(state.size[image, prefix:], np.bincount(want))
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
def test_equals_slow_clustering(n, n_out, iterations, prefix, dtype):
    x, weight = random_tokens(prefix + n)
    check(x.astype(jnp.dtype(dtype)), weight[:, prefix:], n_out, iterations, prefix)


def test_ties_and_duplicates_go_to_the_lower_index():
    """Tokens on a line at whole numbers: most distances, weights and costs are tied."""
    rng = np.random.default_rng(0)
    x = np.zeros((20, 16, 2), np.float32)
    x[..., 0] = rng.integers(0, 6, size=(20, 16))
    x[0] = 1  # the first medoids keep themselves, the others go to the first
    check(x, rng.integers(1, 4, size=(20, 16)).astype(np.float32), 7)


def test_small_differences_beside_a_large_offset_are_seen():
    """Squares of 1,000 have steps of 0.06 in float32; the tokens are 0.01 apart."""
    x, weight = random_tokens(25)
    check(np.float32(1000 + 0.01 * x), weight, 8)
    chex.assert_trees_all_equal(pool(x, weight, 6), pool(x, weight * 2.0**-90, 6))
