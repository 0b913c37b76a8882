import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import merges
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers import oracles, tiny_vit
from tests.helpers.reduction_steps import vectors
from tests.helpers.rounding import assert_close


def random_inputs(n=19, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    return ReducerInputs(
        x=np.ones((batch, n, 2), np.float32),
        size=np.ones((batch, n), np.float32),
        metric=rng.normal(size=(batch, n, 5)).astype(np.float32),
        cls_attn=rng.uniform(size=(batch, n)).astype(np.float32),
    )


def match(reducer, counts, tokens):
    result = reducer(tokens, counts)
    return result, merges.merged_pairs(tokens, result, reducer, counts)


run = tiny_vit.compiled(match, static_argnums=(0, 1))


# Ten tokens, six candidates in the order 6 1 5 7 3 8, split into A = 6 5 3, B = 1 7 8.
DEGREES = [5, 30, 80, 33, 60, 70, 20, 75, 28, 0]
ATTENTION = [0.20, 0.05, 0.15, 0.02, 0.12, 0.04, 0.10, 0.03, 0.01, 0.18]
COUNTS = StepCounts(n_in=10, n_out=7, candidates=6)


def cosine(degrees):
    return np.cos(np.deg2rad(degrees))


def test_pairs_by_hand():
    """On rows of four: 6 (1,2) to 8 (2,0), 5 (1,1) to 7 (1,3), 3 (0,3) to 1 (0,1)."""
    metric = jnp.asarray(vectors(DEGREES))
    size = jnp.ones((1, 10))
    attention = jnp.asarray([ATTENTION])
    tokens = ReducerInputs(x=metric, size=size, metric=metric, cls_attn=attention)
    _, pairs = run(Retokenize(), COUNTS, tokens)
    left, partner = (np.asarray(side[0]).tolist() for side in pairs)
    assert {*zip(left, partner, strict=True)} == {(6, 8), (5, 7), (3, 1)}
    expected = np.mean([cosine(8), cosine(5), cosine(3)])
    assert_close(merges.pair_similarity(tokens, pairs), [expected])
    distance = merges.pair_distance(pairs, 4)
    assert_close(distance, [(np.sqrt(5) + 2 + 2) / 3], units=4)
    places = itertools.product((6, 5, 3), (1, 7, 8))
    cosines = [cosine(DEGREES[a] - DEGREES[b]) for a, b in places]
    similarity = merges.candidate_similarity(tokens, COUNTS)
    assert_close(similarity, [np.mean(cosines)])


@pytest.mark.parametrize(
    "reducer, counts",
    [
        (Retokenize(), StepCounts(n_in=19, n_out=15, candidates=11)),
        (Bipartite(), StepCounts(n_in=19, n_out=13)),
    ],
)
def test_pairs_agree_with_slots(reducer, counts):
    """A pair's tokens share a slot, and the right number of tokens left."""
    tokens = random_inputs()
    result, pairs = run(reducer, counts, tokens)
    slots = merges.merged_slots(result)
    leaving, members = (merges.mark_merged_tokens(pairs, 19, x) for x in (False, True))
    for image, dest in enumerate(np.asarray(result.slot_of_token)):
        left, partner = (np.asarray(side[image]) for side in pairs)
        assert (dest[left] == dest[partner]).all()
        assert len({*left, *partner}) > len({*left})
        assert len({*left}) == counts.n_in - counts.n_out
        filled = np.bincount(dest, minlength=counts.n_out)
        assert slots[image].tolist() == (filled > 1).tolist()
        assert members[image].tolist() == (filled[dest] > 1).tolist()
        assert np.flatnonzero(leaving[image]).tolist() == sorted(left)
        attended = np.array(oracles.by_score(tokens.cls_attn[image]))
        for percent, count in ((15, 3), (70, 14)):  # ceil(.15 * 19), ceil(.7 * 19)
            for marked in (leaving, members):
                overlap = merges.percent_attended(marked, tokens.cls_attn, percent)
                share = marked[image][attended[:count]].sum() / marked[image].sum()
                assert overlap[image] == pytest.approx(100 * share)
