"""Attention sizes and attention maps merge like tokens."""

import numpy as np
import pytest

from imagepiece_jax.kernels.attention import attend_merged
from imagepiece_jax.reduction.state import Assignment
from tests.helpers import tiny_vit
from tests.helpers.reduction_steps import apply
from tests.helpers.rounding import assert_close
from tests.reduction.test_moves import random_move, slow_move


def test_attention_sizes_add_up_beside_the_sizes():
    state, assignment = random_move(7, 3)
    given = np.linspace(-0.5, 2.5, 21, dtype=np.float32).reshape(3, 7)
    given[1] = -1
    moved = apply(state, assignment.replace(attn_size=given))
    x, size = slow_move(state, assignment)
    expected = np.full((3, 3), np.finfo(np.float32).tiny)
    for image, slot in np.ndindex(3, 3):
        total = given[image][assignment.slot_of_token[image] == slot].sum()
        expected[image, slot] = max(total, expected[image, slot])
    assert_close(moved.effective_size[:, 1:], expected, units=8)
    assert (moved.effective_size > 0).all()
    np.testing.assert_array_equal(moved.effective_size[:, :1], state.size[:, :1])
    assert_close(moved.x, x)
    np.testing.assert_array_equal(moved.size, size)
    merge_all = Assignment(slot_of_token=np.zeros((3, 3), np.int32), n_out=1)
    # Without attention sizes, the sizes serve.
    assert apply(state, assignment).attn_size is None
    merged = apply(moved, merge_all)
    assert_close(merged.effective_size[:, 1], expected.sum(axis=1), units=8)
    np.testing.assert_array_equal(merged.size[:, 1], size[:, 1:].sum(axis=1))


@pytest.mark.parametrize("weighted", [True, False])
def test_an_attention_map_merges_by_rows_and_columns(weighted):
    """Slow loops agree; the prefix keeps its rows and columns."""
    state, assignment = random_move(7, 3, prefix=2, weighted=weighted)
    weights = np.random.default_rng(1).uniform(size=(3, 2, 9, 9)).astype(np.float32)
    # Values of 1 at one token each give the merged map.
    values = np.broadcast_to(np.eye(5, dtype=np.float32)[None, :, None], (3, 5, 2, 5))
    attend = tiny_vit.compiled(attend_merged)
    merged = attend(weights, values, assignment, state.size).transpose(0, 2, 1, 3)
    weight = np.asarray(assignment.weight if weighted else state.size[:, 2:])
    for image, head in np.ndindex(3, 2):
        slots = np.asarray(assignment.slot_of_token[image])
        members = [[0], [1]] + [list(2 + np.flatnonzero(slots == s)) for s in range(3)]
        shares = np.concatenate([[1, 1], weight[image]])
        for i, rows in enumerate(members):
            for j, columns in enumerate(members):
                block = weights[image, head][np.ix_(rows, columns)].sum(axis=1)
                expected = (shares[rows] * block).sum() / shares[rows].sum()
                assert merged[image, head, i, j] == pytest.approx(expected, rel=1e-5)
