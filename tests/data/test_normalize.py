import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.data.normalize import normalize, warn_if_unnormalized
from tests.helpers.refused_calls import refused

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_normalization_by_hand():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    out = normalize(jnp.asarray(images), *IMAGENET)
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert out.shape == (1, 1, 1, 3)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[0, 0, 0], expected, atol=1e-6)


def test_means_of_pixels_are_refused():
    image = np.zeros((1, 1, 3), np.uint8)
    with refused("mean is 123; it must be"):
        normalize(image, (123, 117, 104), (58, 57, 57))


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
WRONG = {
    "0 .. 255": np.float32(PIXELS),
    "twice": np.float32((PIXELS / 255 - 0.5) / (0.5 / 255)),
    "0 .. 1": PIXELS / 255,
    "in JAX": jnp.asarray(PIXELS / 255),
    "NaN": np.full((2, 40, 40, 3), np.nan),
}


@pytest.mark.parametrize("images", WRONG.values(), ids=WRONG)
def test_unnormalized_ranges_cause_a_warning(images):
    with pytest.warns(UserWarning, match="the values of images are .* std"):
        warn_if_unnormalized(images, *IMAGENET)


def test_possibly_normalized_images_cause_no_warning():
    """Also noise, constants and traced arrays."""
    noise = np.random.default_rng(0).normal(size=(8, 96, 96, 3))
    white = np.ones((2, 40, 40, 3), np.float32)
    with warnings.catch_warnings(action="error"):
        for images in (np.asarray(normalize(PIXELS, *IMAGENET)), noise, white):
            warn_if_unnormalized(images, *IMAGENET)
        jax.jit(lambda x: warn_if_unnormalized(x, *IMAGENET))(np.float32(PIXELS))
        # This model takes pixels in [0, 1].
        warn_if_unnormalized(PIXELS / 255, (0.0,) * 3, (1.0,) * 3)
