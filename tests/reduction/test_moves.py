import contextlib
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels.attention import attend_merged
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Assignment, Masking, TokenState
from tests.helpers import oracles, tiny_vit
from tests.helpers.reduction_steps import apply
from tests.helpers.rounding import assert_close


def random_maps(rng, batch, n, n_out, drop=0.2):
    """Slot maps of `batch` images onto 0..n_out - 1. -> [batch, n] int32."""
    slots = rng.integers(n_out, size=(batch, n))
    dropped = round(drop * (n - n_out))
    for row in slots:
        order = rng.permutation(n)
        row[order[:n_out]] = np.arange(n_out)
        row[order[n - dropped :]] = DROPPED
    return slots.astype(np.int32)


def random_move(
    n, n_out, prefix=1, weighted=False, dtype="float32", drop=0.3, **fields
):
    """A TokenState and an Assignment of three images, all random."""
    rng = np.random.default_rng(0)
    dest = random_maps(rng, 3, n, n_out, drop)
    state = TokenState(
        x=rng.normal(size=(3, prefix + n, 4)).astype(dtype),
        size=rng.integers(1, 5, size=(3, prefix + n)).astype(np.float32),
        num_prefix=prefix,
    )
    weight = rng.uniform(0.1, 2.0, (3, n)).astype(np.float32) if weighted else None
    return state, Assignment(dest, weight, n_out=n_out, **fields)


def slow_move(state, assignment):
    """The oracle's tokens and sizes after an assignment, prefix included."""
    prefix = state.num_prefix
    xs = []
    sizes = []
    for b in range(state.x.shape[0]):
        x = np.asarray(state.x[b], float)
        size = np.asarray(state.size[b])
        weight = None if assignment.weight is None else assignment.weight[b]
        weight = weight if assignment.by_size else np.ones(len(x) - prefix)
        slots = np.asarray(assignment.slot_of_token[b])
        how = weight, assignment.n_out, assignment.mean
        rows, sums = oracles.apply_map(x[prefix:], size[prefix:], slots, *how)
        xs.append(np.concatenate([x[:prefix], rows]))
        sizes.append(np.concatenate([size[:prefix], sums]))
    return np.stack(xs), np.stack(sizes)


BOTH = (False, True)
WEIGHTS = [dict(weighted=w, mean=m) for w, m in itertools.product(BOTH, BOTH)]
MOVES = [  # n, n_out, options of `random_move`
    *((7, 3, weights) for weights in WEIGHTS),
    (7, 3, WEIGHTS[2] | {"dtype": jnp.dtype("bfloat16")}),
    (7, 3, {"by_size": False}),
    *((7, 3, {"prefix": prefix}) for prefix in (0, 2)),
    (1, 1, {}),
    (19, 12, {}),
]


@pytest.mark.parametrize("n, n_out, options", MOVES)
def test_apply_equals_the_oracle(n, n_out, options):
    state, assignment = random_move(n, n_out, **options)
    moved = apply(state, assignment)
    assert (moved.x.dtype, moved.size.dtype) == (state.x.dtype, jnp.float32)
    assert moved.num_prefix == state.num_prefix
    x, size = slow_move(state, assignment)
    rtol = 2**-8 if "dtype" in options else 1e-5
    np.testing.assert_allclose(np.asarray(moved.x, float), x, rtol=rtol, atol=1e-6)
    np.testing.assert_array_equal(moved.size, size)
    front = slice(state.num_prefix)
    np.testing.assert_array_equal(moved.x[:, front], state.x[:, front])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", [contextlib.nullcontext, kernels.reference_forms])
def test_tokens_that_stay_alone_keep_their_bits(form, weighted):
    """Gathered, by the definition, and with a weight for the gradient."""
    state, assignment = random_move(7, 4, prefix=2, drop=1.0, weighted=weighted)
    pruned = assignment.replace(merges=False, mean=not weighted)
    move = tiny_vit.compiled(lambda *args: moves.apply_result(*args))
    with form():
        moved = move(state, pruned)
    for image, slot in np.ndindex(3, 4):
        (token,) = np.flatnonzero(assignment.slot_of_token[image] == slot)
        expected = state.x[image, 2 + token]
        if weighted:
            expected = expected * assignment.weight[image, token]
        np.testing.assert_array_equal(moved.x[image, 2 + slot], expected)
        assert moved.size[image, 2 + slot] == state.size[image, 2 + token]
    np.testing.assert_array_equal(moved.x[:, :2], state.x[:, :2])


def test_a_slot_is_live_if_any_token_is():
    """Slots have a live and a masked token, two masked tokens, and a live token."""
    state = TokenState(
        x=np.zeros((1, 7, 1), np.float32),
        size=np.ones((1, 7), np.float32),
        mask=np.float32([[1, 0, 0, 1, 0, 1]]),
    )
    dest = np.int32([[0, 0, 1, 2, 1, DROPPED]])
    moved = apply(state, Assignment(slot_of_token=dest, n_out=3))
    assert moved.mask.tolist() == [[1, 0, 1]]


def test_a_package_is_appended_and_live():
    state, _ = random_move(5, 5)
    package = np.float32([[7, 8, 9, 10]] * 3)
    keep = np.float32([[1, 0, 1, 1, 0]] * 3)
    moved = apply(state, Masking(keep, append=package))
    expected = np.concatenate([state.x, package[:, None]], axis=1)
    np.testing.assert_array_equal(moved.x, expected)
    assert moved.size[:, -1].tolist() == [1] * 3
    assert moved.mask.tolist() == [[1, 0, 1, 1, 0, 1]] * 3


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
    merged = apply(moved, merge_all)
    assert_close(merged.effective_size[:, 1], expected.sum(axis=1), units=8)


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
