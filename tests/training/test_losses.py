"""Cross entropy by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.training.losses import soft_cross_entropy


def test_smoothed_target_by_hand():
    """C = 10, smoothing .1: target .91 and .01; logits ln 3 on class 4, else 0."""
    logits = np.zeros((2, 10), np.float32)
    logits[:, 4] = math.log(3)
    targets = np.full((2, 10), 0.01, np.float32)
    targets[0, 4] = targets[1, 0] = 0.91
    got = soft_cross_entropy(logits, targets)
    # log_softmax: ln 3 - ln 12 on class 4, -ln 12 elsewhere.
    right = math.log(12) - 0.91 * math.log(3)
    wrong = math.log(12) - 0.01 * math.log(3)
    np.testing.assert_allclose(got, [right, wrong], rtol=1e-6)


def test_mixed_target_is_the_mix_of_the_losses():
    logits = np.array([[1.0, -2.0, 0.5]], np.float32)
    one, two = np.eye(3, dtype=np.float32)[[0]], np.eye(3, dtype=np.float32)[[1]]
    mixed = soft_cross_entropy(logits, 0.3 * one + 0.7 * two)
    apart = [soft_cross_entropy(logits, y) for y in (one, two)]
    np.testing.assert_allclose(mixed, 0.3 * apart[0] + 0.7 * apart[1], rtol=1e-6)


def test_float32_inside_whatever_comes_in():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(6, 9)) * 4, jnp.bfloat16)
    targets = jnp.asarray(rng.dirichlet(np.ones(9), size=6), jnp.bfloat16)
    got = soft_cross_entropy(logits, targets)
    assert got.dtype == jnp.float32
    z, y = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    want = (y * (np.log(np.exp(z).sum(-1, keepdims=True)) - z)).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_large_logits_stay_finite():
    got = soft_cross_entropy(np.array([[1e4, 0.0]]), np.array([[0.5, 0.5]]))
    np.testing.assert_allclose(got, [5e3])


def test_labels_instead_of_targets_are_refused():
    with pytest.raises(AssertionError):
        soft_cross_entropy(np.zeros((2, 3)), np.zeros(2))
