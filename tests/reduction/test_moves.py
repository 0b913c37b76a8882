import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.state import Assignment, Masking, TokenState
from tests.helpers import oracles
from tests.helpers.reduction_steps import apply


def random_move(
    n, n_out, prefix=1, weighted=False, dtype="float32", drop=0.3, **fields
):
    """A TokenState and an Assignment of three images, all random."""
    rng = np.random.default_rng(0)
    slots = rng.integers(n_out, size=(3, n)).astype(np.int32)
    for row in slots:
        order = rng.permutation(n)
        row[order[:n_out]] = np.arange(n_out)
        row[order[n - round(drop * (n - n_out)) :]] = DROPPED
    state = TokenState(
        x=rng.normal(size=(3, prefix + n, 4)).astype(dtype),
        size=rng.integers(1, 5, size=(3, prefix + n)).astype(np.float32),
        num_prefix=prefix,
    )
    weight = rng.uniform(0.1, 2.0, (3, n)).astype(np.float32) if weighted else None
    return state, Assignment(slots, weight, n_out=n_out, **fields)


@pytest.mark.parametrize(
    "n, n_out, options",
    [
        (7, 3, {}),
        (7, 3, {"mean": False}),
        (7, 3, {"weighted": True}),
        (7, 3, {"weighted": True, "mean": False}),
        (7, 3, {"weighted": True, "mean": False, "dtype": jnp.dtype("bfloat16")}),
        (7, 3, {"by_size": False}),
        (7, 3, {"prefix": 0}),
        (7, 4, {"prefix": 2, "merges": False, "drop": 1.0}),
        (1, 1, {}),
        (19, 12, {}),
    ],
)
def test_apply_equals_the_oracle(n, n_out, options):
    state, assignment = random_move(n, n_out, **options)
    moved = apply(state, assignment)
    assert (moved.x.dtype, moved.size.dtype) == (state.x.dtype, jnp.float32)
    prefix = state.num_prefix
    np.testing.assert_array_equal(moved.x[:, :prefix], state.x[:, :prefix])
    np.testing.assert_array_equal(moved.size[:, :prefix], state.size[:, :prefix])
    rtol = 2**-8 if "dtype" in options else 1e-5
    for image in range(3):
        size = state.size[image, prefix:]
        weight = size if assignment.by_size else np.ones(n)
        if assignment.weight is not None:
            weight = assignment.weight[image]
        tokens = (state.x[image, prefix:], size, assignment.slot_of_token[image])
        rows, sizes = oracles.apply_map(*tokens, weight, n_out, assignment.mean)
        actual = np.asarray(moved.x[image, prefix:], float)
        np.testing.assert_allclose(actual, rows, rtol=rtol, atol=1e-6)
        np.testing.assert_array_equal(moved.size[image, prefix:], sizes)


def test_a_package_is_appended_and_live():
    state, _ = random_move(5, 5)
    package = np.float32([[7, 8, 9, 10]] * 3)
    keep = np.float32([[1, 0, 1, 1, 0]] * 3)
    moved = apply(state, Masking(keep, append=package))
    expected = np.concatenate([state.x, package[:, None]], axis=1)
    np.testing.assert_array_equal(moved.x, expected)
    assert moved.size[:, -1].tolist() == [1] * 3
    assert moved.mask.tolist() == [[1, 0, 1, 1, 0, 1]] * 3
