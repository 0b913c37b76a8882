"""Shared reducers against the papers' definitions.

The oracle gets the same scores and similarities, so ties are equal on both sides.
Metrics with ties are scaled unit vectors: their products round once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.kernels.similarity import cosine_similarity
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.methods.peaks import KeepPeaks
from imagepiece_jax.reduction.reducers import Bipartite, TopK
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import oracles, tiny_vit
from tests.helpers.reduction_steps import decide
from tests.helpers.rounding import assert_close


def make_inputs(scores, metric):
    """ReducerInputs with scores [B, n] and metric [B, n, d], which is also x."""
    ones = np.ones(np.shape(scores), np.float32)
    metric = jnp.float32(metric)
    attention = jnp.float32(scores)
    return ReducerInputs(metric, ones, ones, metric=metric, cls_attn=attention)


def tied_images(n, seed=0):
    """Scores [8, n] and metric [8, n, 6]; most images are full of ties."""
    rng = np.random.default_rng(seed)
    scores = rng.random((8, n))
    scores[3:5] = rng.integers(3, size=(2, n))
    scores[5:7] = np.where(rng.random((2, n)) < 0.4, np.nan, scores[5:7])
    scores[7] = 0.25
    metric = rng.normal(size=(8, n, 6))
    axes = np.eye(6)[rng.integers(6, size=(8, n))] * rng.choice([-1, 1], (8, n, 1))
    scaled = axes * rng.choice([0.001, 1.0], (8, n, 1))  # three sizes of cosine
    metric[1] = scaled[1]
    metric[3:] = scaled[3:]
    metric[5, : n // 2] = 0.0  # zero vectors resemble nothing
    metric[6] = metric[6, :1]  # all tokens are the same
    return scores.astype(np.float32), metric.astype(np.float32)


def fills_every_slot(slots, n_out):
    return all(set(row.tolist()) - {DROPPED} == set(range(n_out)) for row in slots)


@functools.partial(tiny_vit.compiled, static_argnums=1)
def decide_all(inputs, cases):
    """Similarities and all decisions for one n, in one program."""
    similarity = cosine_similarity(inputs.metric, inputs.metric)
    return similarity, [reducer(inputs, counts) for reducer, counts in cases]


def reducers_at(n):
    """(reducer, counts) from the strongest to the weakest reduction of `n` tokens."""
    cases = []
    for kept in sorted({1, n // 2, n - 1}):
        cases.append((TopK(), StepCounts(n_in=n, n_out=kept)))
        cases.append((TopK(fuse=True), StepCounts(n_in=n, n_out=kept + 1)))
    for candidates in {n, n - n // 3}:
        n_out = n - candidates // 2
        counts = StepCounts(n_in=n, n_out=n_out, candidates=candidates)
        cases += [(Retokenize(parity), counts) for parity in (0, 1)]
    return tuple(cases)


def slow_slots(reducer, counts, scores, similarity):
    if reducer == TopK():
        return oracles.top_k(scores, counts.n_out)
    if reducer == TopK(fuse=True):
        slots = oracles.top_k(scores, counts.n_out - 1)
        return np.where(slots == DROPPED, counts.n_out - 1, slots)
    numbers = (counts.candidates, counts.n_in - counts.n_out, reducer.parity)
    return oracles.retokenize(scores, similarity, *numbers)


@pytest.mark.parametrize("n", (2, 3, 8, 19, 64))
def test_decisions_equal_the_oracle(n):
    scores, metric = tied_images(n, seed=n)
    inputs = make_inputs(scores, metric)
    cases = reducers_at(n)
    similarity, results = decide_all(inputs, cases)
    for (reducer, counts), result in zip(cases, results, strict=True):
        assert result.n_out == counts.n_out
        assert result.slot_of_token.dtype == jnp.int32
        for image, slots in enumerate(np.asarray(result.slot_of_token)):
            expected = slow_slots(reducer, counts, scores[image], similarity[image])
            np.testing.assert_array_equal(slots, expected, err_msg=f"{reducer} {image}")


@pytest.mark.parametrize("n, num_prefix", [(2, 1), (8, 0), (19, 1), (19, 2)])
def test_pairs_and_their_order_equal_the_oracle(n, num_prefix):
    _, metric = tied_images(num_prefix + n)
    x = metric[:, num_prefix:]
    inputs = ReducerInputs(x, x[..., 0], metric=x, num_prefix=num_prefix)
    counts = [StepCounts(n, n - merges) for merges in {1, (n + 2) // 4, n // 2}]
    cases = tuple((Bipartite(), step_counts) for step_counts in counts)
    _, results = decide_all(inputs, cases)
    for (_, step_counts), result in zip(cases, results, strict=True):
        assert result.n_out == step_counts.n_out
        for slots, tokens in zip(result.slot_of_token, metric, strict=True):
            cosines = oracles.cosine(tokens, tokens)
            groups = oracles.bipartite(cosines, n - result.n_out, num_prefix)
            expected = oracles.bipartite_slots(groups, num_prefix)
            np.testing.assert_array_equal(slots, expected)


def test_fusing_passes_gradient_to_the_attention():
    """A dropped token's score has the token as gradient, a kept token's score 0."""
    rng = np.random.default_rng(0)
    state = initial_state(jnp.float32(rng.normal(size=(2, 8, 5))))
    scores = np.float32(rng.dirichlet(np.ones(7), size=2))
    counts = StepCounts(n_in=7, n_out=5)

    def loss(scores):
        result = TopK(fuse=True)(make_inputs(scores, state.x[:, 1:]), counts)
        return moves.apply_result(state, result).x.sum()

    gradient = tiny_vit.compiled(jax.grad(loss))(scores)
    for image in range(2):
        dropped = oracles.rank_by_score(scores[image]) >= 4
        expected = np.where(dropped, np.asarray(state.x)[image, 1:].sum(axis=-1), 0)
        assert_close(gradient[image], expected)


@pytest.mark.parametrize(
    "reducer, counts",
    [
        (TopK(fuse=True), StepCounts(n_in=12, n_out=8)),
        (Retokenize(parity=1), StepCounts(n_in=12, n_out=9, candidates=7)),
        (Bipartite(), StepCounts(n_in=12, n_out=9)),
        (KeepPeaks(score="class"), StepCounts(n_in=12, n_out=7)),
    ],
)
def test_bad_numbers_still_fill_every_slot(reducer, counts):
    scores, metric = tied_images(12)
    for bad_scores, bad_metric in (
        (np.full((8, 12), np.nan), np.full_like(metric, np.nan)),
        (np.full((8, 12), -np.inf), np.where(metric > 0, np.nan, metric)),
        (scores, np.where(metric > 0, np.inf, metric)),
    ):
        result = decide(reducer, make_inputs(bad_scores, bad_metric), counts)
        assert fills_every_slot(np.asarray(result.slot_of_token), counts.n_out)
