"""The map from patches to tokens against slow loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import provenance
from imagepiece_jax.reduction.state import DROPPED, Assignment, Masking, Mixing
from tests import oracles
from tests.models import tiny
from tests.reduction.test_moves import random_maps

compose = tiny.compiled(provenance.compose)


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
    inner = random_maps(rng, 4, n0, n)
    outer = random_maps(rng, 4, n, n_out)
    got = compose(outer, inner)
    assert got.dtype == jnp.int32
    for image in range(4):
        want = oracles.compose(outer[image], inner[image])
        np.testing.assert_array_equal(got[image], want)
