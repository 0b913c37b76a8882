"""Applied reductions, and the map from patches to tokens, against slow loops."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Assignment, Masking, TokenState
from tests.helpers import oracles, tiny_vit
from tests.helpers.reduction_steps import apply


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
    n, n_out, prefix=1, weighted=False, dtype=np.float32, drop=0.3, **fields
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
    (7, 3, WEIGHTS[2] | {"dtype": jnp.bfloat16}),
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


def test_sizes_are_exact_beyond_bfloat16():
    state, assignment = random_move(7, 1, dtype=jnp.bfloat16)
    state = state.replace(size=np.full_like(state.size, 129.0))
    assignment = assignment.replace(slot_of_token=np.zeros((3, 7), np.int32))
    np.testing.assert_array_equal(apply(state, assignment).size[:, 1], 7 * 129)


def test_a_token_alone_in_its_slot_keeps_its_bits():
    state, _ = random_move(7, 7)
    slots = np.tile(np.int32([0, 1, 1, 2, DROPPED, 3, 4]), (3, 1))
    moved = apply(state, Assignment(slot_of_token=slots, n_out=5))
    np.testing.assert_array_equal(moved.x[:, [1, 3, 4, 5]], state.x[:, [1, 4, 6, 7]])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", [contextlib.nullcontext, kernels.reference_forms])
def test_tokens_that_stay_alone_keep_their_bits(form, weighted):
    """Gathered, by the definition, and with a weight for the gradient."""
    state, assignment = random_move(7, 4, prefix=2, drop=1.0, weighted=weighted)
    pruned = assignment.replace(merges=False, mean=not weighted)
    with form():
        moved = tiny_vit.compiled(lambda *args: moves.apply_result(*args))(
            state, pruned
        )
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
    np.testing.assert_array_equal(moved.x[:, :-1], state.x)
    np.testing.assert_array_equal(moved.x[:, -1], package)
    assert moved.size[:, -1].tolist() == [1] * 3
    assert moved.mask.tolist() == [[1, 0, 1, 1, 0, 1]] * 3


@tiny_vit.compiled
def gradients(state, assignment, probe):
    def loss(x, weight):
        weighted = assignment.replace(weight=weight)
        moved = moves.apply_result(state.replace(x=x), weighted)
        return jnp.sum(moved.x.astype(jnp.float32) * probe)

    return jax.grad(loss, argnums=(0, 1))(state.x, assignment.weight)


def random_probe(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_gradients_in_bfloat16_are_close():
    probe = random_probe(3, 4, 4)
    rounded_gradients = gradients(
        *random_move(5, 3, weighted=True, dtype=jnp.bfloat16), probe
    )
    exact_gradients = gradients(*random_move(5, 3, weighted=True), probe)
    assert rounded_gradients[0].dtype == jnp.bfloat16
    for rounded, exact in zip(rounded_gradients, exact_gradients, strict=True):
        rounded = np.asarray(rounded, float)
        np.testing.assert_allclose(rounded, exact, rtol=2**-6, atol=2**-6)
