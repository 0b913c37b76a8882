"""ImagePiece's controls, by hand and by oracles."""

import collections
import itertools

import jax
import numpy as np
import pytest

from experiments import controls, merges
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.block_plan import plan_blocks
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from tests.experiments.test_merges import random_inputs
from tests.helpers import oracles
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import decide

FIELDS = [
    {"keep_rate": 0.77},
    {"merge_ratio": 0.15, "prune_blocks": ()},
    {"merge_ratio": 1.0, "candidate_ratio": 1.0},
]


def block_counts(method, n0, depth):
    """(tokens of attention, of the MLP, block of the step) of every block."""
    plan = plan_blocks(depth, n0, method.steps(facts(depth)))
    return [(x.attn_tokens, x.mlp_tokens, x.step and x.step.block) for x in plan]


def first_step(n, method):
    """(reducer, counts) of the first step on n tokens."""
    layer = plan_blocks(12, n, method.steps(facts()))[0]
    return layer.step.reducer, layer.counts


@pytest.mark.parametrize("kind", ["dropping", "random", "matched"])
@pytest.mark.parametrize("fields", FIELDS)
def test_controls_have_imagepieces_counts(kind, fields):
    imagepiece = ImagePiece(**fields)
    control = controls.CONTROLS[f"imagepiece_{kind}"](**fields)
    for n0, depth in ((196, 12), (64, 12), (25, 4), (3, 4)):
        assert block_counts(imagepiece, n0, depth) == block_counts(control, n0, depth)


def test_dropping_drops_the_least_attended():
    """Four of the unmasked tokens leave: ceil(.08 * 41)."""
    reducer, counts = first_step(40, controls.ImagePieceDropping())
    inputs = random_inputs(40, 5)
    lowest = np.argsort(inputs.cls_attn, axis=1)
    mask = np.ones((5, 40), "float32")
    np.put_along_axis(mask, lowest[:, :3], 0, axis=1)
    inputs = inputs.replace(mask=mask)
    dropped = np.nonzero(decide(reducer, inputs, counts).slot_of_token == DROPPED)[1]
    np.testing.assert_array_equal(dropped.reshape(5, 4), np.sort(lowest[:, 3:7]))


@pytest.mark.parametrize("ratios", [("0.5", "0.7"), ("0.08", "0")])
def test_shares_of_candidates_are_exact(ratios):
    """ratios: of merges to candidates, and of candidates to tokens."""
    method = controls.ImagePieceOfCandidates(
        merge_ratio=float(ratios[0]), candidate_ratio=float(ratios[1])
    )
    rule = method.merge_step(0, "class").rule
    for n in (*range(1, 41), 90, 196):
        _, num_merges = oracles.merge_counts(n, *ratios, base="candidates")
        assert rule.n_out(n, n, 1) == (n - num_merges if num_merges else None)


def test_all_pairs_of_candidates_are_drawn_equally():
    n = 20
    images = 3000
    reducer, counts = first_step(n, controls.ImagePieceRandom(candidate_ratio=0.3))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(images))
    inputs = random_inputs(n, images).replace(rng=keys)
    result = decide(reducer, inputs, counts)
    pairs = merges.merged_pairs(inputs, result, reducer, counts)
    left, partner = map(np.asarray, pairs)
    # Places of tokens, the most attended candidate first.
    place = 5 - np.argsort(np.argsort(inputs.cls_attn, axis=1), axis=1)
    sides = [np.take_along_axis(place, tokens, axis=1) for tokens in (left, partner)]
    num_drawn = collections.Counter(zip(*map(np.ravel, sides), strict=True))
    assert set(num_drawn) == {*itertools.product((0, 2, 4), (1, 3, 5))}
    expected = images * (n - counts.n_out) / 9
    assert all(abs(times / expected - 1) < 0.15 for times in num_drawn.values())
