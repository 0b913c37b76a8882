import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels import choice
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Assignment, TokenState
from tests.helpers import compiling


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sizes_of_many_digits_count_in_full(dtype):
    """Opposite tokens' sizes have 12 bits, and their leading bits cancel."""
    if dtype == "float16":
        compiling.needs_float16()
    n = 30
    x = np.zeros((1, n + 1, 4), np.float32)
    x[0, 1:] = np.where(np.arange(n) % 2, -1, 1)[:, None]
    size = np.ones((1, n + 1), np.float32)
    size[0, 1:] = np.where(np.arange(n) % 2, 2047, 2049)
    result = Assignment(jnp.zeros((1, n), jnp.int32), n_out=1)
    state = TokenState(x=jnp.asarray(x, dtype), size=jnp.asarray(size))
    with choice.fast_forms():
        moved = moves.apply_result(state, result)
    mean = (x[0, 1:, 0] * size[0, 1:]).sum() / size[0, 1:].sum()
    assert 0 < mean < 1e-3
    unit = float(jnp.finfo(dtype).eps) * mean
    np.testing.assert_allclose(np.float32(moved.x[0, 1]), mean, rtol=0, atol=unit)


@pytest.mark.parametrize("chosen", [False, True])
def test_clusters_move_by_one_product_of_two_bytes(chosen):
    """Means of all tokens of a cluster, or of one chosen token."""
    rng = np.random.default_rng(0)
    n, n_out = 30, 8
    slots = np.stack([rng.permutation(np.arange(n) % n_out) for _ in range(3)])
    is_first = np.stack([np.isin(np.arange(n), np.unique(d, True)[1]) for d in slots])
    state = TokenState(
        x=jnp.asarray(rng.normal(size=(3, 1 + n, 4)), jnp.bfloat16),
        size=jnp.asarray(rng.integers(1, 9, (3, 1 + n)), jnp.float32),
    )
    weight = jnp.asarray(is_first) if chosen else None
    result = Assignment(jnp.asarray(slots), weight, n_out=n_out, by_size=False)

    def move(state):
        with choice.fast_forms():
            return moves.apply_result(state, result)

    program = jax.jit(move).lower(state)
    products = re.findall(r"dot_general .*: \((.*)\) ->", program.as_text())
    assert len(products) == 1
    assert "f32" not in products[0]
    moved = program.compile()(state)
    x, size = (np.asarray(a, float)[:, 1:] for a in (state.x, state.size))
    for image, slot in np.ndindex(3, n_out):
        members = slots[image] == slot
        averaged = members & is_first[image] if chosen else members
        mean = x[image, averaged].mean(axis=0)
        np.testing.assert_allclose(
            np.asarray(moved.x[image, 1 + slot], float), mean, rtol=2**-7, atol=1e-6
        )
        assert moved.size[image, 1 + slot] == size[image, members].sum()
