"""Normalization by the published numbers, and back."""

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.data.normalize import normalize, to_pixels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3  # of the AugReg ViTs


def test_it_takes_out_the_mean_and_the_deviation():
    images = np.array([[[[0, 128, 255]]]], np.uint8)
    out = normalize(jnp.asarray(images), *IMAGENET)
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert out.shape == (1, 1, 1, 3) and out.dtype == jnp.float32
    np.testing.assert_allclose(out[0, 0, 0], expected, atol=1e-6)
    half = normalize(jnp.asarray(images[0]), *HALF)
    np.testing.assert_allclose(half[0, 0], [-1, 1 / 255, 1], atol=1e-6)


def test_back_to_every_pixel():
    images = np.arange(256, dtype=np.uint8).reshape(1, 256, 1, 1).repeat(3, axis=3)
    for chosen in (IMAGENET, HALF):
        back = to_pixels(normalize(jnp.asarray(images), *chosen), *chosen)
        np.testing.assert_array_equal(back, images)
    assert to_pixels(jnp.full((1, 1, 3), 9.0), *HALF).tolist() == [[[255] * 3]]
