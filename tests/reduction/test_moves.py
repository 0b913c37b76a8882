"""Applying a reduction, and the map from patches to tokens, against slow loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import moves, provenance
from imagepiece_jax.reduction.state import DROPPED, Assignment, TokenState, start
from tests import oracles
from tests.models import tiny
from tests.reduction.steps import FORMS, apply, index_of, move
from tests.rounding import assert_close


def random_maps(rng, batch, n, n_out, drop=0.2):
    """Slot maps onto 0..n_out - 1 of `batch` images. -> [batch, n] int32."""
    dest = rng.integers(n_out, size=(batch, n))
    dropped = round(drop * (n - n_out))
    for row in dest:
        order = rng.permutation(n)
        row[order[:n_out]] = np.arange(n_out)
        row[order[n - dropped :]] = DROPPED
    return dest.astype(np.int32)


def make(
    n,
    n_out,
    prefix=1,
    weighted=False,
    mean=True,
    dtype=np.float32,
    seed=0,
    drop=0.3,
):
    """(state, assignment) with three images of random tokens, sizes and slot maps."""
    rng = np.random.default_rng(seed)
    dest = random_maps(rng, 3, n, n_out, drop)
    state = TokenState(
        x=rng.normal(size=(3, prefix + n, 4)).astype(dtype),
        size=rng.integers(1, 5, size=(3, prefix + n)).astype(np.float32),
        num_prefix=prefix,
    )
    weight = rng.uniform(0.1, 2.0, (3, n)).astype(np.float32)
    return state, Assignment(
        dest=dest,
        weight=weight if weighted else None,
        n_out=n_out,
        mean=mean,
        index=index_of(dest, n_out),
    )


def expected(state, assignment):
    """The oracle's tokens and sizes for the images of a `make` pair, with prefix."""
    prefix = state.num_prefix
    xs = []
    sizes = []
    for b in range(state.x.shape[0]):
        x = np.asarray(state.x[b], float)
        size = np.asarray(state.size[b])
        weight = None if assignment.weight is None else assignment.weight[b]
        moved, added = oracles.apply_map(
            x[prefix:],
            size[prefix:],
            np.asarray(assignment.dest[b]),
            weight,
            assignment.n_out,
            assignment.mean,
        )
        xs.append(np.concatenate([x[:prefix], moved]))
        sizes.append(np.concatenate([size[:prefix], added]))
    return np.stack(xs), np.stack(sizes)


WEIGHTS = [
    {"weighted": weighted, "mean": mean}
    for weighted, mean in itertools.product((False, True), (False, True))
]
MOVES = [  # n, n_out, options of `make`
    *((7, 3, weights) for weights in WEIGHTS),
    (7, 3, WEIGHTS[2] | {"dtype": jnp.bfloat16}),
    *((7, 3, {"prefix": prefix}) for prefix in (0, 2)),
    (1, 1, {}),
    (19, 12, {}),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, n_out, options", MOVES)
def test_apply_equals_the_oracle(n, n_out, options, form):
    """Bfloat16 is rounded once; the prefix is never touched."""
    state, assignment = make(n, n_out, **options)
    got = apply(state, assignment, form=form)
    assert (got.x.dtype, got.size.dtype) == (state.x.dtype, jnp.float32)
    assert got.num_prefix == state.num_prefix
    x, size = expected(state, assignment)
    rtol = 2**-8 if "dtype" in options else 1e-5
    np.testing.assert_allclose(np.asarray(got.x, float), x, rtol=rtol, atol=1e-6)
    np.testing.assert_array_equal(got.size, size)
    front = slice(state.num_prefix)
    np.testing.assert_array_equal(got.x[:, front], state.x[:, front])


@pytest.mark.parametrize("form", FORMS)
def test_a_stack_of_reductions_holds_means_of_patches(form):
    """Sizes are counts of patches, and every slot has one."""
    rng = np.random.default_rng(3)
    steps = []
    state = start(rng.normal(size=(3, 25, 4)).astype(np.float32))
    patches = state.x[:, 1:]
    source = np.tile(np.arange(24), (3, 1))
    for n, n_out in itertools.pairwise((24, 15, 15, 8, 3, 1)):
        steps.append(Assignment(dest=random_maps(rng, 3, n, n_out), n_out=n_out))
        state = apply(state, steps[-1], form=form)
        slots = provenance.patch_slots(steps, 3, 24)[-1]
        for image in range(3):
            source[image] = oracles.compose(steps[-1].dest[image], source[image])
            means, counts = oracles.apply_map(
                patches[image], np.ones(24), source[image], n_out=n_out
            )
            np.testing.assert_array_equal(state.size[image, 1:], counts)
            np.testing.assert_allclose(state.x[image, 1:], means, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(slots, source)
        assert counts.min() >= 1


@pytest.mark.parametrize("weighted", [True, False])
def test_many_absorbed_tokens_are_a_product(weighted):
    """More than are summed one by one; features and gradients are the same."""
    n = 3 * moves.FEW
    n_out = moves.FEW
    state, assignment = make(n, n_out, weighted=weighted)
    got = apply(state, assignment, form="gather")
    np.testing.assert_allclose(
        got.x, expected(state, assignment)[0], rtol=1e-5, atol=1e-5
    )
    probe = random_probe(*got.x.shape)
    by_gather, by_product = (
        gradients(state, assignment, probe, form) for form in FORMS
    )
    assert_close(by_gather, by_product)


def test_sizes_are_exact_past_what_bfloat16_can_count():
    state, assignment = make(7, 1, dtype=jnp.bfloat16)
    state = state.replace(size=np.full_like(state.size, 129.0))
    assignment = assignment.replace(dest=np.zeros((3, 7), np.int32), index=None)
    np.testing.assert_array_equal(apply(state, assignment).size[:, 1], 7 * 129)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_alone_in_its_slot_keeps_its_bits(form):
    """w / w is 1: a mean over one token is that token, not a rounding of it."""
    state, _ = make(7, 7)
    dest = np.tile(np.int32([0, 1, 1, 2, DROPPED, 3, 4]), (3, 1))
    if form == "gather":  # reads survivors only; a product would spread 0 * inf
        state.x[:, 1 + 4] = np.inf
    got = apply(state, Assignment(dest=dest, n_out=5), form=form)
    assert np.isfinite(got.x).all()
    np.testing.assert_array_equal(got.x[:, [1, 3, 4, 5]], state.x[:, [1, 4, 6, 7]])


@pytest.mark.parametrize("form", FORMS)
def test_a_slot_is_live_if_any_of_its_tokens_is(form):
    """One with a live and a masked token, one with two masked, one with a live one."""
    state = TokenState(
        x=np.zeros((1, 7, 1), np.float32),
        size=np.ones((1, 7), np.float32),
        mask=np.float32([[1, 0, 0, 1, 0, 1]]),
    )
    dest = np.int32([[0, 0, 1, 2, 1, DROPPED]])
    moved = apply(state, Assignment(dest=dest, n_out=3), form=form)
    assert moved.mask.tolist() == [[1, 0, 1]]


@functools.partial(tiny.compiled, static_argnames="form")
def gradients(state, assignment, probe, form):
    """Gradients of sum(tokens * probe): of x and, where there is one, of weight."""

    def loss(x, weight):
        moved = move(state.replace(x=x), assignment.replace(weight=weight), form)
        return jnp.sum(moved.x.astype(jnp.float32) * probe)

    return jax.grad(loss, argnums=(0, 1))(state.x, assignment.weight)


def finite_differences(state, assignment, probe, step=1e-5):
    """The same from the oracle, in float64 by central differences."""
    x = np.asarray(state.x, float)
    weight = assignment.weight
    free = [x] if weight is None else [x, np.asarray(weight, float)]
    slopes = [np.zeros_like(a) for a in free]

    def loss():
        moved = expected(
            state.replace(x=free[0]),
            assignment.replace(weight=None if weight is None else free[1]),
        )
        return float((moved[0] * np.asarray(probe, float)).sum())

    for values, slope in zip(free, slopes, strict=True):
        for i in np.ndindex(values.shape):
            held = values[i]
            values[i] = held + step
            up = loss()
            values[i] = held - step
            slope[i] = (up - loss()) / (2 * step)
            values[i] = held
    return slopes if len(slopes) == 2 else (*slopes, None)


def random_probe(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradients_are_the_slopes(weights):
    """The gather's own backward rule, plain differentiation of the product, slopes."""
    state, assignment = make(5, 3, **weights)
    probe = random_probe(3, 4, 4)
    by_gather = gradients(state, assignment, probe, "gather")
    by_product = gradients(state, assignment, probe, "one_hot")
    slopes = finite_differences(state, assignment, probe)
    assert_close(by_gather, by_product)
    for gradient, slope in zip(by_gather, slopes, strict=True):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_in_bfloat16_are_finite_and_close(form):
    state, assignment = make(5, 3, weighted=True, dtype=jnp.bfloat16)
    probe = random_probe(3, 4, 4)
    got = gradients(state, assignment, probe, form)
    want = finite_differences(state, assignment, probe)
    assert got[0].dtype == jnp.bfloat16
    for gradient, slope in zip(got, want, strict=True):
        gradient = np.asarray(gradient, float)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, slope, rtol=2**-6, atol=2**-6)
