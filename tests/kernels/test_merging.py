import jax.numpy as jnp
import numpy as np

from imagepiece_jax.kernels import choice
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Assignment, TokenState


def test_sizes_of_many_digits_count_in_full():
    """Opposite tokens' sizes have 12 bits, and their leading bits cancel."""
    n = 30
    x = np.zeros((1, n + 1, 4), np.float32)
    x[0, 1:] = np.where(np.arange(n) % 2, -1, 1)[:, None]
    size = np.ones((1, n + 1), np.float32)
    size[0, 1:] = np.where(np.arange(n) % 2, 2047, 2049)
    result = Assignment(jnp.zeros((1, n), jnp.int32), n_out=1)
    state = TokenState(x=jnp.asarray(x, jnp.bfloat16), size=jnp.asarray(size))
    with choice.fast_forms():
        moved = moves.apply_result(state, result)
    mean = (x[0, 1:, 0] * size[0, 1:]).sum() / size[0, 1:].sum()
    assert 0 < mean < 1e-3
    unit = float(jnp.finfo(jnp.bfloat16).eps) * mean
    np.testing.assert_allclose(np.float32(moved.x[0, 1]), mean, rtol=0, atol=unit)
