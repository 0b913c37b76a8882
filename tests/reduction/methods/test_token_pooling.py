import functools
import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.token_pooling import KMedoids
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import oracles, tiny_vit


@functools.partial(tiny_vit.compiled, static_argnames=("n_out", "iterations", "prefix"))
def pool(x, weight, n_out, iterations=3, prefix=0):
    """dest, tokens and sizes after a reduction. x [B, prefix + n, D]."""
    image = x[:, prefix:]
    size = jnp.ones(image.shape[:2], jnp.float32)
    inputs = ReducerInputs(x=image, size=size, attn_columns=weight)
    result = KMedoids(iterations=iterations)(inputs, StepCounts(image.shape[1], n_out))
    state = moves.apply_result(initial_state(x, prefix), result)
    return result.slot_of_token, state.x, state.size


def distance(a, b):
    return math.dist(np.asarray(a, float), np.asarray(b, float))


def slow_kmedoids(x, weight, k, iterations=3):
    """[n, D], [n] -> medoids in order, dest [n]."""
    medoids = sorted(oracles.by_score(weight)[:k])
    for _ in range(iterations):
        clusters = {m: [m] for m in medoids}
        for i in range(len(x)):
            if i not in clusters:
                nearest = min(medoids, key=lambda m: (distance(x[i], x[m]), m))
                clusters[nearest].append(i)
        found = {}
        for members in clusters.values():
            found[cheapest(members, x, weight)] = members
        medoids = sorted(found)
    dest = np.full(len(x), -1)
    for slot, medoid in enumerate(medoids):
        dest[found[medoid]] = slot
    return medoids, dest


def cheapest(members, x, weight):
    """The member with the smallest sum of weighted distances to all of them."""
    costs = {}
    for i in members:
        costs[i] = sum(float(weight[j]) * distance(x[i], x[j]) for j in members)
    return min(members, key=lambda i: (costs[i], i))


def check(x, weight, n_out, iterations=3, prefix=0):
    """`pool` against slow clustering, medoids and prefix bit for bit."""
    dest, rows, sizes = pool(x, weight, n_out, iterations, prefix)
    assert rows.dtype == x.dtype
    for image in range(len(x)):
        tokens = np.asarray(x[image, prefix:], np.float32)
        medoids, want = slow_kmedoids(tokens, weight[image], n_out, iterations)
        np.testing.assert_array_equal(dest[image], want)
        np.testing.assert_array_equal(sizes[image, prefix:], np.bincount(want))
        stay = [*range(prefix), *(prefix + medoid for medoid in medoids)]
        np.testing.assert_array_equal(rows[image], x[image][stay])


def random_tokens(n, width=5, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, n, width)).astype(np.float32)
    return x, rng.uniform(0.1, 3, size=(batch, n)).astype(np.float32)


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
    weight = rng.integers(1, 4, size=(20, 16)).astype(np.float32)
    check(x, weight, 7)
    # All tokens alike: the first medoids keep themselves, the others go to the first.
    dest, _, _ = pool(np.ones((2, 10, 3), np.float32), np.ones((2, 10), np.float32), 9)
    np.testing.assert_array_equal(dest, 2 * [[*range(9), 0]])


def test_small_differences_beside_a_large_offset_are_seen():
    """Squares of 1,000 have steps of 0.06 in float32; the tokens are 0.01 apart."""
    x, weight = random_tokens(25)
    x = np.float32(1000 + 0.01 * x)
    check(x, weight, 8)
    x, weight = random_tokens(20)
    both = (pool(x, factor * weight, 6) for factor in (1, 2.0**-90))
    chex.assert_trees_all_equal(*both)
