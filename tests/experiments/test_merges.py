import itertools

import numpy as np
import pytest

from experiments import merges
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers import tiny_vit
from tests.helpers.reduction_steps import vectors
from tests.helpers.rounding import assert_close


def inputs_at_angles(degrees, attention):
    """Tokens whose keys are unit vectors at these angles. One image."""
    metric = vectors(degrees)
    scores = np.asarray([attention], np.float32)
    size = np.ones_like(scores)
    return ReducerInputs(x=metric, size=size, metric=metric, cls_attn=scores)


def random_inputs(n=19, batch=3, seed=0):
    """Tokens of noise."""
    rng = np.random.default_rng(seed)
    return ReducerInputs(
        x=np.ones((batch, n, 2), np.float32),
        size=np.ones((batch, n), np.float32),
        metric=rng.normal(size=(batch, n, 5)).astype(np.float32),
        cls_attn=rng.uniform(size=(batch, n)).astype(np.float32),
    )


PERCENTS = (15, 70)


def measure_merges(reducer, counts, tokens):
    """A matching and all of its measures, in one program."""
    result = reducer(tokens, counts)
    pairs = merges.merged_pairs(tokens, result, reducer, counts)
    members = {
        x: merges.mark_merged_tokens(pairs, counts.n_in, x) for x in (False, True)
    }
    return {
        "slot_of_token": result.slot_of_token,
        "pairs": pairs,
        "similarity": merges.pair_similarity(tokens, pairs),
        "distance": merges.pair_distance(pairs, 4),
        "slots": merges.merged_slots(result),
        "members": members,
        "attended": {
            (both, percent): merges.percent_attended(
                members[both], tokens.cls_attn, percent
            )
            for both, percent in itertools.product(members, PERCENTS)
        },
    }


run = tiny_vit.compiled(measure_merges, static_argnums=(0, 1))


# Ten tokens, six candidates in the order 6 1 5 7 3 8, split into A = 6 5 3, B = 1 7 8.
TEN = inputs_at_angles(
    [5, 30, 80, 33, 60, 70, 20, 75, 28, 0],
    [0.20, 0.05, 0.15, 0.02, 0.12, 0.04, 0.10, 0.03, 0.01, 0.18],
)
TEN_COUNTS = StepCounts(n_in=10, n_out=7, candidates=6)


@pytest.fixture(scope="module")
def retokenized():
    return run(Retokenize(), TEN_COUNTS, TEN)


def list_pairs(pairs):
    """Pairs of the first image as a set of tuples."""
    left, partner = (np.asarray(tokens[0]).tolist() for tokens in pairs)
    return set(zip(left, partner, strict=True))


def cosine(degrees):
    return np.cos(np.deg2rad(degrees))


def test_pairs_of_retokenize_by_hand(retokenized):
    assert list_pairs(retokenized["pairs"]) == {(6, 8), (5, 7), (3, 1)}
    expected = np.mean([cosine(8), cosine(5), cosine(3)])
    assert_close(retokenized["similarity"], [expected])


def test_all_pairs_of_candidates_by_hand():
    degrees = {6: 20, 5: 70, 3: 33, 1: 30, 7: 75, 8: 28}
    places = itertools.product((6, 5, 3), (1, 7, 8))
    pairs = [cosine(degrees[a] - degrees[b]) for a, b in places]
    similarity = tiny_vit.compiled(merges.candidate_similarity, static_argnums=1)
    assert_close(similarity(TEN, TEN_COUNTS), [np.mean(pairs)])


def test_distance_of_pairs_by_hand(retokenized):
    """On rows of four: 6 (1,2) to 8 (2,0), 5 (1,1) to 7 (1,3), 3 (0,3) to 1 (0,1)."""
    assert_close(retokenized["distance"], [(np.sqrt(5) + 2 + 2) / 3], units=4)


@pytest.mark.parametrize(
    "reducer, counts",
    [
        (Retokenize(), StepCounts(n_in=19, n_out=15, candidates=11)),
        (Bipartite(), StepCounts(n_in=19, n_out=13)),
    ],
)
def test_pairs_agree_with_slots(reducer, counts):
    """A pair's tokens share a slot, and the right number of tokens left."""
    merged = run(reducer, counts, random_inputs())
    (left, partner) = merged["pairs"]
    members = merged["members"]
    dest = merged["slot_of_token"]
    slots = merged["slots"]
    for image in range(3):
        assert (dest[image][left[image]] == dest[image][partner[image]]).all()
        assert len({*left[image], *partner[image]}) > len(set(left[image]))
        assert len(set(left[image])) == counts.n_in - counts.n_out
        filled = np.bincount(dest[image], minlength=counts.n_out)
        assert slots[image].tolist() == (filled > 1).tolist()
        assert members[True][image].tolist() == (filled[dest[image]] > 1).tolist()
        assert np.flatnonzero(members[False][image]).tolist() == sorted(left[image])


def slow_overlap(members, attention, percent):
    """Sorted lists instead of counted places."""
    n = len(attention)
    count = -(-percent * n // 100)
    order = sorted(range(n), key=lambda token: (-attention[token], token))
    shared = set(order[:count]) & set(np.flatnonzero(members))
    return 100 * len(shared) / members.sum()


def test_overlap_equals_sorted_lists():
    tokens = random_inputs(seed=2)
    merged = run(Bipartite(), StepCounts(n_in=19, n_out=13), tokens)
    for both, percent in itertools.product((False, True), PERCENTS):
        pairs = zip(merged["members"][both], tokens.cls_attn, strict=True)
        expected = [slow_overlap(*pair, percent) for pair in pairs]
        assert_close(merged["attended"][both, percent], np.asarray(expected))
