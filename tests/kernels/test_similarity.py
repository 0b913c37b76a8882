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
    # Zero vectors: their cosine is 0, never NaN.
    a[0, 1] = 0.0
    b[1, 2] = 0.0
    a = jnp.asarray(a, dtype)
    b = jnp.asarray(b, dtype)
    cosines = cosine_similarity(a, b)
    assert cosines.dtype == jnp.float32
    for image in range(2):
        expected = oracles.cosine(a[image], b[image])
        np.testing.assert_allclose(cosines[image], expected, atol=2e-6)
    assert not cosines[0, 1].any()
    assert not cosines[1, :, 2].any()
    within = cosine_similarity(a)
    np.testing.assert_allclose(within, cosine_similarity(a, a), atol=2e-6)
    assert not within[0, 1].any()
    tiny = jnp.asarray([[[1e-3, 0.0]]])  # |v|^2 = eps halves the cosine
    assert float(cosine_similarity(tiny)[0, 0, 0]) == pytest.approx(0.5, rel=1e-5)
