"""Attention sizes and attention maps are merged like tokens."""

import numpy as np
import pytest

from imagepiece_jax.kernels.merging import merge_map
from imagepiece_jax.reduction.state import Assignment
from tests.helpers import tiny_vit
from tests.helpers.reduction_steps import FORMS, apply
from tests.helpers.rounding import assert_close
from tests.reduction.test_moves import random_move, slow_move


@pytest.mark.parametrize("form", FORMS)
def test_attention_sizes_add_up_beside_the_sizes(form):
    state, assignment = random_move(7, 3)
    given = np.linspace(-0.5, 2.5, 21, dtype=np.float32).reshape(3, 7)
    given[1] = -1
    got = apply(state, assignment.replace(attn_size=given), form=form)
    x, size = slow_move(state, assignment)
    want = np.full((3, 3), np.finfo(np.float32).tiny)
    for image, slot in np.ndindex(3, 3):
        total = given[image][assignment.slot_of_token[image] == slot].sum()
        want[image, slot] = max(total, want[image, slot])
    assert_close(got.effective_size[:, 1:], want, units=8)
    assert (got.effective_size > 0).all()
    np.testing.assert_array_equal(got.effective_size[:, :1], state.size[:, :1])
    assert_close(got.x, x)
    np.testing.assert_array_equal(got.size, size)
    one = Assignment(slot_of_token=np.zeros((3, 3), np.int32), n_out=1)
    # Without attention sizes, the sizes serve.
    assert apply(state, assignment).attn_size is None
    again = apply(got, one, form=form)
    assert_close(again.effective_size[:, 1], want.sum(axis=1), units=8)
    np.testing.assert_array_equal(again.size[:, 1], size[:, 1:].sum(axis=1))


@pytest.mark.parametrize("weighted", [True, False])
def test_a_map_of_attention_is_merged_by_rows_and_columns(weighted):
    """Slow loops agree; the prefix keeps its rows and columns."""
    state, assignment = random_move(7, 3, prefix=2, weighted=weighted)
    weights = np.random.default_rng(1).uniform(size=(3, 2, 9, 9)).astype(np.float32)
    size = state.size[:, 2:]
    merged = tiny_vit.compiled(merge_map)
    got = merged(weights, assignment, size)
    loose = merged(weights, assignment.replace(index=None), size)
    assert_close(got, loose, units=8)
    by = np.asarray(assignment.weight if weighted else size)
    for image, head in np.ndindex(3, 2):
        dest = np.asarray(assignment.slot_of_token[image])
        members = [[0], [1]] + [list(2 + np.flatnonzero(dest == s)) for s in range(3)]
        share = np.concatenate([[1, 1], by[image]])
        for i, rows in enumerate(members):
            for j, columns in enumerate(members):
                block = weights[image, head][np.ix_(rows, columns)].sum(axis=1)
                want = (share[rows] * block).sum() / share[rows].sum()
                assert got[image, head, i, j] == pytest.approx(want, rel=1e-5)
