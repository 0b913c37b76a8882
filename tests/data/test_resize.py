"""The fast resize against Pillow's, on noise and photographs; and against its maths."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data import resize


def pillow(image, height, width):
    image = Image.fromarray(image)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photographs(assets):
    folder = assets / "data" / "nips2017_224_jpg" / "images"
    files = sorted(folder.iterdir())[:12]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


# Enlarged, shrunk a little and much, and each way along the other axis.
SIZES = [(448, 300), (224, 180), (200, 170), (131, 117), (112, 75), (40, 300), (28, 50)]


@pytest.mark.parametrize("size", SIZES)
def test_fast_is_close_to_pillow_on_photographs(photographs, size):
    errors = []
    for image in photographs:
        out = resize.fast(image, *size)
        assert out.shape == (*size, 3) and out.dtype == np.uint8
        errors.append(np.abs(out.astype(int) - pillow(image, *size)))
    assert np.mean(errors) < 1, np.mean(errors)
    assert max(error.mean() for error in errors) < 2
    assert np.quantile(errors, 0.999) < 10


def test_exact_is_pillow(photographs):
    out = resize.exact(photographs[0], 100, 333)
    np.testing.assert_array_equal(out, pillow(photographs[0], 100, 333))


@pytest.mark.parametrize("size", [9, 16, 25, 31, 47, 63])
def test_fine_stripes_become_grey(size):
    """Without antialiasing they would become coarse ones (moire)."""
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    out = resize.fast(stripes, 96, size)[:, 2:-2].astype(int)
    truth = pillow(stripes, 96, size)[:, 2:-2].astype(int)
    assert np.abs(out - 127.5).max() <= np.abs(truth - 127.5).max() + 8


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 300), (500, 8)])
def test_a_plain_image_stays_plain(size):
    image = np.full((37, 53, 3), (1, 128, 254), np.uint8)
    assert (resize.fast(image, *size) == (1, 128, 254)).all()


def test_the_smallest_images():
    image = np.full((1, 1, 3), 77, np.uint8)
    assert (resize.fast(image, 4, 9) == 77).all()
    assert resize.fast(np.zeros((1, 1000, 3), np.uint8), 16, 16).shape == (16, 16, 3)


def test_the_same_size_is_the_same_image():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    np.testing.assert_array_equal(resize.fast(image, 9, 7), image)


def test_a_part_of_an_image_does_not_see_the_rest():
    image = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    part = image[20:70, 10:80]
    np.testing.assert_array_equal(
        resize.fast(part, 32, 32), resize.fast(part.copy(), 32, 32)
    )
