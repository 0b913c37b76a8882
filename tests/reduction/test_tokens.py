"""The map from patches to tokens, through any stack of reductions."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import merging, tokens
from imagepiece_jax.reduction.tokens import DROPPED, Assignment, TokenState, start
from tests import oracles
from tests.models import tiny

# Compiled as a whole: one by one, their operations take longer.
compose, unmerge = jax.jit(tokens.compose), jax.jit(tokens.unmerge)


def random_maps(rng, batch, n, n_out, drop=0.2):
    """Slot maps onto 0..n_out - 1 of `batch` images. -> [batch, n] int32."""
    dest = rng.integers(n_out, size=(batch, n))
    dest = np.where(rng.random((batch, n)) < drop, DROPPED, dest)
    for row in dest:
        row[rng.permutation(n)[:n_out]] = np.arange(n_out)
    return dest.astype(np.int32)


def test_dropped_is_minus_one():
    assert DROPPED == -1


@pytest.mark.parametrize("n0, n, n_out", [(1, 1, 1), (9, 5, 2), (33, 20, 7)])
def test_compose_equals_the_oracle(n0, n, n_out):
    rng = np.random.default_rng(0)
    inner, outer = random_maps(rng, 4, n0, n), random_maps(rng, 4, n, n_out)
    got = compose(jnp.asarray(outer), jnp.asarray(inner))
    assert got.dtype == jnp.int32
    for image in range(4):
        want = oracles.compose(outer[image], inner[image])
        np.testing.assert_array_equal(got[image], want)


def test_a_dropped_patch_does_not_wrap_to_the_last_slot():
    inner, outer = jnp.asarray([[0, DROPPED, 1]]), jnp.asarray([[DROPPED, 5]])
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
        "class token": {"fill": jnp.asarray(cls)},
    }
    got = unmerge(jnp.asarray(values), jnp.asarray(source), **given[fill])
    for image in range(3):
        what = {"default": 0.0, "number": -2.5, "class token": cls[image]}[fill]
        want = oracles.unmerge(values[image], source[image], what)
        np.testing.assert_array_equal(got[image], want.astype(np.float32))


def test_unmerge_keeps_the_dtype():
    values, source = jnp.ones((1, 2, 3), jnp.bfloat16), jnp.asarray([[1, DROPPED]])
    assert unmerge(values, source).dtype == jnp.bfloat16
    assert unmerge(values, source, jnp.zeros((1, 3))).dtype == jnp.bfloat16


def random_stack(rng, counts, drop, dim=4):
    """Reductions by random maps. -> ([(values, dest) of each], the whole map)."""
    history, whole = [], np.tile(np.arange(counts[0]), (3, 1))
    for n, n_out in itertools.pairwise(counts):
        dest = random_maps(rng, 3, n, n_out, drop)
        history.append((rng.normal(size=(3, n, dim)).astype(np.float32), dest))
        for image in range(3):
            whole[image] = oracles.compose(dest[image], whole[image])
    return history, whole


def slow_last_value(patch, history, image, values):
    """Follow one patch through its slots until it is dropped, or to the end."""
    slot = patch
    for before, dest in history:
        after = dest[image][slot]
        if after == DROPPED:
            return before[image][slot]
        slot = after
    return values[image][slot]


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_dropped_patches_can_have_the_last_value_they_had(drop):
    rng = np.random.default_rng(0)
    history, source = random_stack(rng, (24, 15, 15, 8, 3), drop)
    values = rng.normal(size=(3, 3, 4)).astype(np.float32)
    got = unmerge(values, source, history=history)
    assert (source == DROPPED).any() == bool(drop)
    for image, patch in itertools.product(range(3), range(24)):
        want = slow_last_value(patch, history, image, values)
        np.testing.assert_array_equal(got[image, patch], want)


def test_a_history_by_hand():
    """Patch 1 goes at once, with its own value; 2 and 3 later, as their mean."""
    first = (jnp.asarray([[[1.0], [2], [3], [5]]]), jnp.asarray([[0, DROPPED, 1, 1]]))
    second = (jnp.asarray([[[10.0], [40]]]), jnp.asarray([[0, DROPPED]]))
    source = jnp.asarray([[0, DROPPED, DROPPED, DROPPED]])
    last = unmerge(jnp.asarray([[[7.0]]]), source, history=[first, second])
    assert last[0, :, 0].tolist() == [7, 2, 40, 40]
    # A history that ends early leaves the rest to `fill`.
    part = unmerge(jnp.asarray([[[7.0]]]), source, fill=-1.0, history=[first])
    assert part[0, :, 0].tolist() == [7, 2, -1, -1]
    cls = jnp.asarray([[9.0]])
    none = unmerge(jnp.asarray([[[7.0]]]), source, fill=cls, history=[])
    assert none[0, :, 0].tolist() == [7, 9, 9, 9]


def test_last_values_keep_the_dtype_and_pass_gradients():
    dest = jnp.asarray([[0, DROPPED, 0]])

    def paint(before, values):
        return unmerge(values, dest, history=[(before, dest)])

    before, values = jnp.ones((1, 3, 2), jnp.bfloat16), jnp.ones((1, 1, 2))
    assert paint(before, values).dtype == jnp.float32
    assert paint(before, values.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    slope = jax.grad(lambda *args: paint(*args).sum(), argnums=(0, 1))
    slopes = tiny.jit(slope)(before, values)
    assert slopes[0][0].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert slopes[1][0].tolist() == [[2, 2]]


def test_unmerge_has_a_gradient():
    """Every patch of a slot adds to it, dropped patches add to nothing."""
    source = jnp.asarray([[0, 1, 1, DROPPED, 1]])
    slope = jax.grad(lambda values: unmerge(values, source).sum())(jnp.ones((1, 2, 1)))
    assert slope[0, :, 0].tolist() == [1.0, 3.0]


def test_compose_and_unmerge_are_the_same_jitted_mapped_and_stacked():
    rng = np.random.default_rng(2)
    inner, outer = random_maps(rng, 4, 9, 5), random_maps(rng, 4, 5, 3)
    values = rng.normal(size=(4, 3, 2)).astype(np.float32)

    def paint(outer, inner, values):
        source = tokens.compose(outer, inner)
        return source, tokens.unmerge(values, source)

    arrays = tuple(jnp.asarray(a) for a in (outer, inner, values))
    eager = paint(*arrays)
    chex.assert_trees_all_equal(eager, jax.jit(paint)(*arrays))
    for mapped in (jax.pmap(paint), tiny.jit(jax.vmap(paint))):
        extra = mapped(*(a[None] for a in arrays))
        chex.assert_trees_all_equal(eager, jax.tree.map(lambda a: a[0], extra))


def test_start_is_one_patch_a_token():
    state = start(jnp.zeros((2, 6, 3)), num_prefix=2, trace_source=True)
    assert state.size.tolist() == [[1.0] * 6] * 2
    assert state.size.dtype == jnp.float32
    assert state.source.tolist() == [[0, 1, 2, 3]] * 2
    assert start(jnp.zeros((2, 6, 3))).source is None


def test_the_prefix_is_not_an_array():
    """A traced prefix would make shapes depend on data."""
    state = TokenState(x=jnp.zeros((1, 3, 2)), size=jnp.ones((1, 3)), num_prefix=2)
    assert len(jax.tree.leaves(state)) == 2
    again = jax.jit(lambda given: given)(state)
    assert again.num_prefix == 2


@pytest.mark.parametrize("form", ["gather", "one_hot"])
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_a_stack_of_reductions_stays_honest(form, drop):
    """Sizes are counts of patches, features their means, slots none empty."""
    rng = np.random.default_rng(3)
    patches = rng.normal(size=(3, 24, 4))
    x = np.concatenate([rng.normal(size=(3, 1, 4)), patches], axis=1)
    state = start(jnp.asarray(x, jnp.float32), trace_source=True)
    move = tiny.jit(merging.apply, static_argnames="form")
    whole = np.tile(np.arange(24), (3, 1))
    for n, n_out in ((24, 15), (15, 15), (15, 8), (8, 3), (3, 1)):
        dest = random_maps(rng, 3, n, n_out, drop)
        step = Assignment(dest=jnp.asarray(dest), n_out=n_out)
        state = move(state, step, form=form)
        for image in range(3):
            whole[image] = oracles.compose(dest[image], whole[image])
            counts = oracles.count_sources(whole[image], n_out)
            assert counts.min() >= 1
            np.testing.assert_array_equal(state.size[image, 1:], counts)
            means, _ = oracles.apply_map(
                patches[image], np.ones(24), whole[image], n_out=n_out
            )
            np.testing.assert_allclose(state.x[image, 1:], means, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(state.source, whole)
    kept = (whole != DROPPED).sum(axis=1)
    np.testing.assert_array_equal(state.size[:, 1:].sum(axis=1), kept)
    assert drop or (kept == 24).all()
