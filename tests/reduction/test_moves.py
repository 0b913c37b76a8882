"""Applied reductions, and the map from patches to tokens, against slow loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.merging import DROPPED, FEW_ABSORBED
from imagepiece_jax.reduction.state import Assignment, Masking, TokenState
from tests.helpers import oracles, tiny_vit
from tests.helpers.reduction_steps import FORMS, apply, make_index, move
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
    index = make_index(dest, n_out)
    return state, Assignment(dest, weight, index=index, n_out=n_out, **fields)


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, n_out, options", MOVES)
def test_apply_equals_the_oracle(n, n_out, options, form):
    state, assignment = random_move(n, n_out, **options)
    moved = apply(state, assignment, form=form)
    assert (moved.x.dtype, moved.size.dtype) == (state.x.dtype, jnp.float32)
    assert moved.num_prefix == state.num_prefix
    x, size = slow_move(state, assignment)
    rtol = 2**-8 if "dtype" in options else 1e-5
    np.testing.assert_allclose(np.asarray(moved.x, float), x, rtol=rtol, atol=1e-6)
    np.testing.assert_array_equal(moved.size, size)
    front = slice(state.num_prefix)
    np.testing.assert_array_equal(moved.x[:, front], state.x[:, front])


@pytest.mark.parametrize("weighted", [True, False])
def test_many_absorbed_tokens_equal_the_oracle(weighted):
    """Beyond FEW_ABSORBED a product replaces sums; features and gradients stay."""
    n = 3 * FEW_ABSORBED
    n_out = FEW_ABSORBED
    state, assignment = random_move(n, n_out, weighted=weighted)
    moved = apply(state, assignment, form="gather")
    x, _ = slow_move(state, assignment)
    np.testing.assert_allclose(moved.x, x, rtol=1e-5, atol=1e-5)
    probe = random_probe(*moved.x.shape)
    assert_close(*(gradients(state, assignment, probe, form) for form in FORMS))


def test_sizes_are_exact_beyond_bfloat16():
    state, assignment = random_move(7, 1, dtype=jnp.bfloat16)
    state = state.replace(size=np.full_like(state.size, 129.0))
    assignment = assignment.replace(
        slot_of_token=np.zeros((3, 7), np.int32), index=None
    )
    np.testing.assert_array_equal(apply(state, assignment).size[:, 1], 7 * 129)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_alone_in_its_slot_keeps_its_bits(form):
    state, _ = random_move(7, 7)
    slots = np.tile(np.int32([0, 1, 1, 2, DROPPED, 3, 4]), (3, 1))
    if form == "gather":  # reads survivors only; a product would spread 0 * inf
        state.x[:, 1 + 4] = np.inf
    moved = apply(state, Assignment(slot_of_token=slots, n_out=5), form=form)
    assert np.isfinite(moved.x).all()
    np.testing.assert_array_equal(moved.x[:, [1, 3, 4, 5]], state.x[:, [1, 4, 6, 7]])


@pytest.mark.parametrize("form", FORMS)
def test_a_slot_is_live_if_any_token_is(form):
    """Slots have a live and a masked token, two masked tokens, and a live token."""
    state = TokenState(
        x=np.zeros((1, 7, 1), np.float32),
        size=np.ones((1, 7), np.float32),
        mask=np.float32([[1, 0, 0, 1, 0, 1]]),
    )
    dest = np.int32([[0, 0, 1, 2, 1, DROPPED]])
    moved = apply(state, Assignment(slot_of_token=dest, n_out=3), form=form)
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


@functools.partial(tiny_vit.compiled, static_argnames="form")
def gradients(state, assignment, probe, form):
    def loss(x, weight):
        moved = move(state.replace(x=x), assignment.replace(weight=weight), form)
        return jnp.sum(moved.x.astype(jnp.float32) * probe)

    return jax.grad(loss, argnums=(0, 1))(state.x, assignment.weight)


def random_probe(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_in_bfloat16_are_close(form):
    probe = random_probe(3, 4, 4)
    rounded_gradients = gradients(
        *random_move(5, 3, weighted=True, dtype=jnp.bfloat16), probe, form
    )
    exact_gradients = gradients(*random_move(5, 3, weighted=True), probe, "one_hot")
    assert rounded_gradients[0].dtype == jnp.bfloat16
    for rounded, exact in zip(rounded_gradients, exact_gradients, strict=True):
        rounded = np.asarray(rounded, float)
        np.testing.assert_allclose(rounded, exact, rtol=2**-6, atol=2**-6)
