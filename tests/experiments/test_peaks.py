"""The study of peaks: its judging photographs, controls and figures."""

import jax
import numpy as np
import pytest

from experiments import peaks
from experiments.peaks import KeepParts
from imagepiece_jax.evaluation.result_cache import encode_bits
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.peaks import KeepPeaks
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers.reduction_steps import vectors

COUNTS = StepCounts(n_in=9, n_out=4)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 9, 6)).astype(np.float32)
    ones = np.ones((3, 9), np.float32)
    score = rng.dirichlet(np.ones(9), 3).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    return ReducerInputs(x, ones, ones, cls_and_mean_attn=score, rng=keys)


def decide(inputs, **parts):
    return KeepParts(score="class_and_mean", **parts)(inputs, COUNTS)


def test_judging_photographs_chose_nothing():
    """The method was chosen on 1, 3, .., 599, the recipe on 100 even ones."""
    judging = peaks.judging_photographs()
    assert len(judging) == 600
    assert judging[judging % 2 == 1].tolist() == [*range(601, 1000, 2)]


def test_the_default_control_equals_the_method(inputs):
    control = decide(inputs)
    method = KeepPeaks(score="class_and_mean")(inputs, COUNTS)
    for name in ("slot_of_token", "weight", "attn_size"):
        np.testing.assert_array_equal(getattr(control, name), getattr(method, name))


def test_each_control_exchanges_one_part(inputs):
    peaks_result = decide(inputs)
    highest = decide(inputs, keep="highest")
    score = inputs.cls_and_mean_attn
    kept = np.asarray(highest.attn_size) == 1
    for image in range(3):
        best = np.argsort(-score[image], kind="stable")[:4]
        assert set(np.flatnonzero(kept[image])) == {*best}
    np.testing.assert_array_equal(highest.weight, peaks_result.weight)
    plain = decide(inputs, merge="plain")
    np.testing.assert_array_equal(plain.slot_of_token, peaks_result.slot_of_token)
    assert (np.asarray(plain.weight) == 1).all()
    assert decide(inputs, merge="patches").weight is None
    squared = decide(inputs, merge="square").weight
    np.testing.assert_allclose(squared, score**2, rtol=1e-6, atol=1e-9)
    dropped = np.asarray(decide(inputs, merge="none").slot_of_token)
    assert ((dropped == DROPPED).sum(axis=1) == 5).all()
    drawn = decide(inputs, keep="random")
    assert not np.array_equal(drawn.slot_of_token, peaks_result.slot_of_token)
    assert (np.asarray(drawn.slot_of_token).max(axis=1) == 3).all()


def test_divergences_by_hand():
    """Probabilities .8 and .2 beside .5 and .5, and equal ones."""
    dense = np.log(np.float32([[0.8, 0.2], [0.5, 0.5]]))
    reduced = np.log(np.float32([[0.5, 0.5], [0.5, 0.5]]))
    line = peaks.compare_logits(reduced, dense, labels=np.array([0, 1]))
    expected = [0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5), 0]
    np.testing.assert_allclose(peaks.decode_values(line["kl"]), expected, atol=1e-4)
    # The first of equal probabilities is class 0.
    assert line["same"] == encode_bits(np.array([True, True]))
    assert line["right"] == encode_bits(np.array([True, False]))


def test_distances_of_features_by_hand():
    """Twelve vectors on a circle; the reduced model turns one by 60 degrees."""
    degrees = np.rad2deg(np.arange(12) * 0.1)
    dense = vectors(degrees)[0]
    reduced = vectors([degrees[0] - 60, *degrees[1:]])[0]
    dense_features = {"vectors": dense, "maps": dense[:, None]}
    features = {"vectors": reduced, "maps": reduced[:, None]}
    line = peaks.compare_features(features, dense_features)
    for field in ("vector", "maps"):
        distances = peaks.decode_values(line[field])
        np.testing.assert_allclose(distances, [0.5] + [0] * 11, atol=1e-3)
    # Vectors 1 to 5 exchange their farthest neighbor 11 for 0; the others had 0.
    kept = peaks.decode_values(line["kept"])
    np.testing.assert_allclose(kept, [1] + [0.9] * 5 + [1] * 6, atol=1e-3)
