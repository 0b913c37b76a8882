"""The map from patches to tokens, and back, against slow loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import provenance
from imagepiece_jax.reduction.tokens import DROPPED, Assignment, Masking, Mixing
from tests import oracles
from tests.models import tiny
from tests.reduction.test_tokens import random_maps

compose = tiny.compiled(provenance.compose)
unmerge = tiny.compiled(provenance.unmerge)


def test_slots_are_followed_until_tokens_overlap():
    """A merge, a drop, then a step that mixes or masks."""
    merge = Assignment(dest=np.int32([[0, 1, 0, 2]]), n_out=3)
    drop = Assignment(dest=np.int32([[1, DROPPED, 0]]), n_out=2)
    for last in (Mixing(np.ones((1, 1, 2))), Masking(np.ones((1, 2)))):
        slots = provenance.patch_slots((merge, drop, last, drop), 1, 4)
        assert [slot.tolist() for slot in slots[:3]] == [
            [[0, 1, 2, 3]],
            [[0, 1, 0, 2]],
            [[1, DROPPED, 1, 0]],
        ]
        assert slots[3:] == [None, None]
    (alone,) = provenance.patch_slots((), 2, 3)
    assert alone.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("n0, n, n_out", [(1, 1, 1), (9, 5, 2), (33, 20, 7)])
def test_compose_equals_the_oracle(n0, n, n_out):
    rng = np.random.default_rng(0)
    inner, outer = random_maps(rng, 4, n0, n), random_maps(rng, 4, n, n_out)
    got = compose(outer, inner)
    assert got.dtype == jnp.int32
    for image in range(4):
        want = oracles.compose(outer[image], inner[image])
        np.testing.assert_array_equal(got[image], want)


def test_unmerge_equals_the_oracle():
    """Where dropped patches get 0, a number, or a vector such as the class token."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 5, 4)).astype(np.float32)
    source = random_maps(rng, 3, 12, 5, drop=0.5)
    cls = rng.normal(size=(3, 4)).astype(np.float32)
    for given, fills in (((), [0.0] * 3), ((-2.5,), [-2.5] * 3), ((cls,), cls)):
        got = unmerge(values, source, *given)
        for image, fill in enumerate(fills):
            want = oracles.unmerge(values[image], source[image], fill)
            np.testing.assert_array_equal(got[image], want.astype(np.float32))


def test_unmerge_keeps_the_dtype():
    values, source = np.ones((1, 2, 3), jnp.bfloat16), np.int32([[1, DROPPED]])
    for fill in (0.0, np.zeros((1, 3), np.float32)):
        got = jax.eval_shape(provenance.unmerge, values, source, fill)
        assert got.dtype == jnp.bfloat16


def test_unmerge_has_a_gradient():
    """Every patch of a slot adds to it, dropped patches add to nothing."""
    source = np.int32([[0, 1, 1, DROPPED, 1]])
    slope = jax.grad(lambda values: provenance.unmerge(values, source).sum())
    slope = tiny.compiled(slope)(np.ones((1, 2, 1), np.float32))
    assert slope[0, :, 0].tolist() == [1.0, 3.0]
