"""Token Pooling's clusters against slow loops; medoids come through unchanged."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.token_pooling import KMedoids
from imagepiece_jax.reduction.ops import squared_distances
from imagepiece_jax.reduction.state import ReducerInputs, start
from tests import oracles
from tests.models import tiny
from tests.rounding import assert_close


@functools.partial(tiny.compiled, static_argnames=("reducer", "n_out", "prefix"))
def run(reducer, x, weight, n_out, prefix=0):
    """dest, and the state after a reduction. x [B, prefix + n, D]."""
    image = x[:, prefix:]
    size = jnp.ones(image.shape[:2], jnp.float32)
    inputs = ReducerInputs(x=image, size=size, attn_columns=weight)
    result = reducer(inputs, StepCounts(image.shape[1], n_out))
    return result.dest, moves.apply(start(x, prefix), result)


def pool(reducer, x, weight, n_out):
    """(dest [B, n], image tokens [B, n_out, D], sizes [B, n_out]) after a reduction."""
    dest, state = run(reducer, x, weight, n_out)
    return dest, state.x, state.size


def distance(a, b):
    """Euclidean, of two tokens, in Python's numbers."""
    total = 0.0
    for p, q in zip(a, b, strict=True):
        total += (float(p) - float(q)) ** 2
    return math.sqrt(total)


def nearest(token, others):
    """The key of what is nearest to a token in {key: token}, the lowest of several."""
    return min(others, key=lambda key: (distance(token, others[key]), key))


def slow_kmedoids(x, weight, k, iterations=3):
    """[n, D], [n] -> medoids in order, dest [n]."""
    medoids = sorted(oracles.by_score(weight)[:k])
    for _ in range(iterations):
        clusters = {m: [m] for m in medoids}
        for i in range(len(x)):
            if i not in clusters:
                medoid = nearest(x[i], {m: x[m] for m in medoids})
                clusters[medoid].append(i)
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


def check(x, weight, n_out, iterations=3):
    """`pool` against the slow truth, medoids bit for bit."""
    dest, rows, sizes = pool(KMedoids(iterations=iterations), x, weight, n_out)
    for image in range(len(x)):
        medoids, want = slow_kmedoids(x[image], weight[image], n_out, iterations)
        np.testing.assert_array_equal(dest[image], want)
        np.testing.assert_array_equal(sizes[image], np.bincount(want))
        np.testing.assert_array_equal(rows[image], x[image][medoids])


def random_tokens(n, width=5, batch=3, seed=0):
    """Tokens and significances, float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, n, width)).astype(np.float32)
    return x, rng.uniform(0.1, 3, size=(batch, n)).astype(np.float32)


LINE = np.float32([0, 1, 2, 10, 11])[None, :, None]
WEIGHT = np.float32([[1, 5, 1, 1, 2]])


@pytest.mark.parametrize("iterations", [1, 7])
def test_by_hand(iterations):
    """Clusters 0 1 2 and 10 11; nothing changes after the first iteration."""
    dest, rows, sizes = pool(KMedoids(iterations=iterations), LINE, WEIGHT, 2)
    assert (dest.tolist(), sizes.tolist()) == ([[0, 0, 0, 1, 1]], [[3, 2]])
    assert rows[..., 0].tolist() == [[1, 11]]


@pytest.mark.parametrize(
    "n, n_out, iterations", [(1, 1, 3), (7, 7, 3), (19, 2, 1), (30, 9, 5)]
)
def test_equals_slow_clustering(n, n_out, iterations):
    check(*random_tokens(n, seed=n), n_out, iterations)


def test_ties_and_duplicates_go_to_the_lower_index():
    """Tokens on a line at whole numbers: most distances, weights and costs are tied."""
    rng = np.random.default_rng(0)
    x = np.zeros((20, 16, 2), np.float32)
    x[..., 0] = rng.integers(0, 6, size=(20, 16))
    weight = rng.integers(1, 4, size=(20, 16)).astype(np.float32)
    check(x, weight, 7)


@pytest.mark.parametrize("n_out", [1, 9])
def test_tokens_that_are_all_the_same_fill_every_slot(n_out):
    x = np.ones((2, 10, 3), np.float32)
    weight = np.ones((2, 10), np.float32)
    dest, rows, sizes = pool(KMedoids(), x, weight, n_out)
    assert (rows == 1).all()
    assert (sizes.sum(axis=1) == 10).all()
    # The first medoids keep themselves; any other goes to the first of them.
    np.testing.assert_array_equal(dest, 2 * [[*range(n_out)] + [0] * (10 - n_out)])


def test_small_differences_beside_a_large_offset_are_seen():
    """Squares of 1,000 have steps of 0.06 in float32; the tokens are 0.01 apart."""
    x, weight = random_tokens(25)
    x = np.float32(1000 + 0.01 * x)
    check(x, weight, 8)
    near = tiny.compiled(squared_distances)(x)
    want = [[distance(a, b) ** 2 for b in x[0]] for a in x[0]]
    assert_close(near[0], want)
    x, weight = random_tokens(20)
    both = (pool(KMedoids(), x, factor * weight, 6) for factor in (1, 2.0**-90))
    chex.assert_trees_all_equal(*both)


@pytest.mark.parametrize("dtype, prefix", [("bfloat16", 1), ("float32", 2)])
def test_medoids_and_prefix_come_through_bit_for_bit(dtype, prefix):
    x, weight = random_tokens(20 + prefix)
    x = x.astype(jnp.dtype(dtype))
    weight = weight[:, prefix:]
    dest, state = run(KMedoids(), x, weight, 6, prefix)
    assert state.x.dtype == dtype
    assert state.x.shape == (3, prefix + 6, 5)
    for image in range(3):
        medoids, want = slow_kmedoids(x[image, prefix:], weight[image], 6)
        rows = [*range(prefix), *(prefix + m for m in medoids)]
        np.testing.assert_array_equal(state.x[image], x[image][rows])
        np.testing.assert_array_equal(dest[image], want)


def test_the_gradient_is_that_of_a_gather():
    """E.g. of the hand example; the significance gets none."""

    def loss(x, weight):
        inputs = ReducerInputs(x=x, size=jnp.ones((1, 5)), attn_columns=weight)
        state = moves.apply(start(x, 0), KMedoids()(inputs, StepCounts(5, 2)))
        return 3 * state.x[0, 0, 0] + 5 * state.x[0, 1, 0]

    to_x, to_weight = tiny.compiled(jax.grad(loss, (0, 1)))(LINE, WEIGHT)
    assert to_x[0, :, 0].tolist() == [0, 3, 0, 0, 5]
    assert not to_weight.any()


@pytest.mark.parametrize(
    "score, name", [("class", "cls_attn"), ("received", "attn_columns")]
)
def test_a_model_clusters_by_what_the_block_before_attends_to(score, name):
    reduction = "token_pooling:blocks=(1,2):keep_rate=0.6"
    model = tiny.model(f"{reduction}:score={score}")
    out = tiny.compiled(model.apply)(tiny.variables(model), tiny.images())
    assert [layer.attn_tokens for layer in model.plan] == [26, 16, 10]
    for inputs, result, n_out in zip(
        out.reducer_inputs, out.results, (15, 9), strict=True
    ):
        other = {"attn_columns", "cls_attn"} - {name}
        assert getattr(inputs, other.pop()) is None
        weight = np.asarray(getattr(inputs, name))
        # All columns but the class token's own.
        assert (weight.sum(axis=1) < 1).all()
        assert (weight.sum(axis=1) > 0.5).all()
        for image in range(3):
            _, dest = slow_kmedoids(np.asarray(inputs.x[image]), weight[image], n_out)
            np.testing.assert_array_equal(result.dest[image], dest)
    np.testing.assert_array_equal(out.state.size[:, 1:].sum(axis=1), tiny.TOKENS)
