"""The map from patches to tokens, and back, against slow loops."""

import chex
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


def test_dropped_is_minus_one():
    assert DROPPED == -1


@pytest.mark.parametrize("n0, n, n_out", [(1, 1, 1), (9, 5, 2), (33, 20, 7)])
def test_compose_equals_the_oracle(n0, n, n_out):
    rng = np.random.default_rng(0)
    inner, outer = random_maps(rng, 4, n0, n), random_maps(rng, 4, n, n_out)
    got = compose(outer, inner)
    assert got.dtype == jnp.int32
    for image in range(4):
        want = oracles.compose(outer[image], inner[image])
        np.testing.assert_array_equal(got[image], want)


def test_a_dropped_patch_does_not_wrap_to_the_last_slot():
    inner, outer = np.int32([[0, DROPPED, 1]]), np.int32([[DROPPED, 5]])
    assert compose(outer, inner).tolist() == [[DROPPED, DROPPED, 5]]


def test_compose_is_associative():
    rng = np.random.default_rng(1)
    a, b, c = (random_maps(rng, 3, n, m) for n, m in ((16, 11), (11, 6), (6, 4)))
    left = compose(compose(c, b), a)
    np.testing.assert_array_equal(left, compose(c, compose(b, a)))


@pytest.mark.parametrize("fill", ["default", "number", "class token"])
def test_unmerge_equals_the_oracle(fill):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 5, 4)).astype(np.float32)
    source = random_maps(rng, 3, 12, 5, drop=0.5)
    cls = rng.normal(size=(3, 4)).astype(np.float32)
    given = {
        "default": {},
        "number": {"fill": -2.5},
        "class token": {"fill": cls},
    }
    got = unmerge(values, source, **given[fill])
    for image in range(3):
        what = {"default": 0.0, "number": -2.5, "class token": cls[image]}[fill]
        want = oracles.unmerge(values[image], source[image], what)
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


class ProvenanceTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_compose_and_unmerge(self):
        def paint(outer, inner, values):
            source = provenance.compose(outer, inner)
            return source, provenance.unmerge(values, source)

        rng = np.random.default_rng(2)
        inner, outer = random_maps(rng, 4, 9, 5), random_maps(rng, 4, 5, 3)
        arrays = outer, inner, rng.normal(size=(4, 3, 2)).astype(np.float32)
        got = self.variant(paint)(*map(jnp.asarray, arrays))
        chex.assert_trees_all_equal(got, tiny.jit(paint)(*arrays))
