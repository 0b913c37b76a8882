"""Measures of merges: hand-computed cases and slow loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import merges
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.layer_plan import Counts
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.ops import rank
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.tokens import Taps
from tests.models import tiny


def taps(degrees, attention):
    """Tokens whose keys are unit vectors at these angles. One image."""
    angle = np.deg2rad(np.asarray(degrees, np.float32))[None]
    metric = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    n = angle.shape[1]
    return Taps(
        x=jnp.ones((1, n, 2)),
        size=jnp.ones((1, n)),
        metric=metric,
        cls_attn=jnp.asarray([attention], jnp.float32),
    )


def drawn(n=19, batch=3, seed=0):
    """Tokens of noise."""
    rng = np.random.default_rng(seed)
    return Taps(
        x=jnp.ones((batch, n, 2)),
        size=jnp.ones((batch, n)),
        metric=jnp.asarray(rng.normal(size=(batch, n, 5)), jnp.float32),
        cls_attn=jnp.asarray(rng.uniform(size=(batch, n)), jnp.float32),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(reducer, counts, tokens):
    """A matching and all that is derived from it, compiled at once, which is quick."""
    result = reducer(tokens, counts)
    members = {
        both: merges.taking_part(result, counts.n_in, both) for both in (False, True)
    }
    return result, merges.pairs(result), merges.merged_slots(result), members


# Ten tokens, six candidates in the order 6 1 5 7 3 8, split into A = 6 5 3, B = 1 7 8.
TEN = taps(
    [5, 30, 80, 33, 60, 70, 20, 75, 28, 0],
    [0.20, 0.05, 0.15, 0.02, 0.12, 0.04, 0.10, 0.03, 0.01, 0.18],
)
TEN_COUNTS = Counts(n_in=10, n_out=7, candidates=6)
RETOKENIZED, TEN_PAIRS, TEN_SLOTS, _ = run(Retokenize(), TEN_COUNTS, TEN)


def listed(pairs):
    """Pairs of the first image as a set of tuples."""
    left, partner = (np.asarray(tokens[0]).tolist() for tokens in pairs)
    return set(zip(left, partner, strict=True))


def cosine(degrees):
    return np.cos(np.deg2rad(degrees))


def test_pairs_of_retokenize_by_hand():
    found = listed(TEN_PAIRS)
    assert found == {(6, 8), (5, 7), (3, 1)}
    expected = np.mean([cosine(8), cosine(5), cosine(3)])
    likeness = merges.pair_similarity(TEN, RETOKENIZED)
    np.testing.assert_allclose(likeness, [expected], rtol=1e-5)


def test_all_pairs_of_candidates_by_hand():
    degrees = {6: 20, 5: 70, 3: 33, 1: 30, 7: 75, 8: 28}
    pairs = [cosine(degrees[a] - degrees[b]) for a in (6, 5, 3) for b in (1, 7, 8)]
    found = merges.candidate_similarity(TEN, TEN_COUNTS)
    np.testing.assert_allclose(found, [np.mean(pairs)], rtol=1e-5)


def test_merged_slots_by_hand():
    """Tokens 0 1 2 4 7 8 9 are left; 1, 7 and 8 have swallowed one each."""
    expected = [[False, True, False, False, True, True, False]]
    assert TEN_SLOTS.tolist() == expected


def test_distance_of_pairs_by_hand():
    """On rows of five: 6 (1,1) to 8 (1,3), 5 (1,0) to 7 (1,2), 3 (0,3) to 1 (0,1);
    on rows of four: 6 (1,2) to 8 (2,0), 5 (1,1) to 7 (1,3), 3 (0,3) to 1 (0,1)."""
    np.testing.assert_allclose(merges.pair_distance(RETOKENIZED, 5), [2.0])
    expected = (np.sqrt(5) + 2 + 2) / 3
    np.testing.assert_allclose(merges.pair_distance(RETOKENIZED, 4), [expected])


def test_pairs_of_tome_by_hand():
    """Positions with the class token first: 2 goes to 1, 4 to 3, 6 to 5."""
    seven = taps([10, 14, 50, 47, 90, 88], [0.1] * 6)
    result, pairs, *_ = run(Bipartite(), Counts(n_in=6, n_out=4), seven)
    found = listed(pairs)
    assert found == {(5, 4), (3, 2)}  # image tokens: one less
    expected = np.mean([cosine(2), cosine(3)])
    np.testing.assert_allclose(
        merges.pair_similarity(seven, result), [expected], rtol=1e-5
    )


@pytest.mark.parametrize(
    "reducer, counts",
    [
        (Retokenize(), Counts(n_in=19, n_out=15, candidates=11)),
        (Bipartite(), Counts(n_in=19, n_out=13)),
    ],
)
def test_pairs_are_those_of_the_slot_map(reducer, counts):
    """Both ends of a pair are in one slot, and only so many tokens left theirs."""
    tokens = drawn()
    result, pairs, slots, members = run(reducer, counts, tokens)
    left, partner = map(np.asarray, pairs)
    dest, slots = np.asarray(result.dest), np.asarray(slots)
    for image in range(3):
        assert (dest[image][left[image]] == dest[image][partner[image]]).all()
        assert len({*left[image], *partner[image]}) > len(set(left[image]))
        assert len(set(left[image])) == counts.n_in - counts.n_out
        held = np.bincount(dest[image], minlength=counts.n_out)
        assert slots[image].tolist() == (held > 1).tolist()
        assert members[True][image].tolist() == (held[dest[image]] > 1).tolist()
        gone = np.flatnonzero(members[False][image])
        assert gone.tolist() == sorted(left[image])


def test_attentive_share_by_hand():
    """Of tokens 0, 3 and 4 one, 3, is among the two most attended."""
    merged = jnp.asarray([[True, False, False, True, True]])
    attention = jnp.asarray([[0.1, 0.5, 0.2, 0.3, 0.0]])
    found = merges.attentive_share(merged, attention, 2)
    np.testing.assert_allclose(found, [1 / 3], rtol=1e-6)


def slow_overlap(members, attention, percent):
    """Sorted lists instead of counted places."""
    n = len(attention)
    count = -(-percent * n // 100)
    order = sorted(range(n), key=lambda token: (-attention[token], token))
    shared = set(order[:count]) & set(np.flatnonzero(members))
    return 100 * len(shared) / members.sum()


@pytest.mark.parametrize("percent", [15, 70, 100])
@pytest.mark.parametrize("both", [False, True])
def test_overlap_is_that_of_sorted_lists(percent, both):
    tokens = drawn(seed=2)
    members = run(Bipartite(), Counts(n_in=19, n_out=13), tokens)[-1][both]
    found = merges.percent_attended(members, tokens.cls_attn, percent)
    pairs = zip(np.asarray(members), np.asarray(tokens.cls_attn), strict=True)
    np.testing.assert_allclose(found, [slow_overlap(*p, percent) for p in pairs])


def test_overlap_grows_with_the_share():
    tokens = drawn(seed=4)
    members = run(Bipartite(), Counts(n_in=19, n_out=13), tokens)[-1][True]
    shares = [
        merges.percent_attended(members, tokens.cls_attn, k) for k in range(0, 101, 10)
    ]
    assert (np.diff(np.stack(shares), axis=0) >= 0).all()
    assert (shares[0] == 0).all() and (shares[-1] == 100).all()


@pytest.mark.parametrize("n, candidates", [(19, 5), (196, 58)])
def test_imagepiece_never_touches_the_top_seventy_percent(n, candidates):
    tokens = drawn(n, batch=2)
    counts = Counts(n_in=n, n_out=n - candidates // 2, candidates=candidates)
    members = run(Retokenize(), counts, tokens)[-1][True]
    assert merges.percent_attended(members, tokens.cls_attn, 70).tolist() == [0, 0]
    lowest = np.asarray(rank(tokens.cls_attn)) >= n - candidates
    assert (np.asarray(members) <= lowest).all()


def test_top_count_rounds_up_exactly():
    assert [merges.top_count(196, k) for k in (15, 30, 70)] == [30, 59, 138]
    assert merges.top_count(100, 7) == 7


def test_class_attention_is_not_looked_for_where_there_is_no_class_token():
    model = tiny.model(tiny.IMAGEPIECE, class_token=False)
    with pytest.raises(InputError, match="the model has no class token; allowed are"):
        merges.observed(model)
