import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.similarity import cosine_similarity
from tests.helpers import oracles


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cosines_equal_the_oracle_in_float32(dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 5, 8))
    b = rng.normal(size=(2, 3, 8))
    a[0, 1] = b[1, 2] = 0.0  # their cosine is 0, never NaN
    a[1, 2] = [1e-3] + [0] * 7  # |v|^2 = eps lowers the cosine
    a = jnp.asarray(a, dtype)
    b = jnp.asarray(b, dtype)
    for other, cosines in ((b, cosine_similarity(a, b)), (a, cosine_similarity(a))):
        assert cosines.dtype == jnp.float32
        expected = [oracles.cosine(a[image], other[image]) for image in range(2)]
        np.testing.assert_allclose(cosines, expected, atol=2e-6)
