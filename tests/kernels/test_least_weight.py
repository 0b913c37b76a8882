"""Means of two-byte tokens by tiny weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels import choice
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Assignment, TokenState


@pytest.mark.parametrize("weight", [0.0, 1e-45, 1e-38, 2e-30])
@pytest.mark.parametrize("fast", [False, True])
def test_tiny_equal_weights_give_the_plain_mean(weight, fast):
    """Half of the sum of 1/8 and 3/8; flushed products gave 0."""
    x = jnp.asarray([[[5.0], [0.125], [0.375]]], jnp.bfloat16)
    weights = jnp.full((1, 2), weight, jnp.float32)
    state = TokenState(x=x, size=jnp.ones((1, 3), jnp.float32))
    result = Assignment(jnp.zeros((1, 2), jnp.int32), weights, n_out=1)
    if fast:
        with choice.fast_forms():
            moved = moves.apply_result(state, result)
    else:
        moved = moves.apply_result(state, result)
    np.testing.assert_array_equal(np.float32(moved.x[0, :, 0]), [5.0, 0.25])
