import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.preprocessing import MAX_ASPECT, Preprocessing, resize_exactly
from tests.helpers.noise_images import color_ramp, train_transform
from tests.helpers.refused_calls import refused

DEIT = Preprocessing(28, crop=0.875)


# The short side is int(28 / .875) = 32. The long side is rounded down, and a half-pixel
# offset goes to the even pixel: 52 -> int(41.6) = 41 -> 6.5 -> 6 and 54 -> int(43.2) =
# 43 -> 7.5 -> 8
@pytest.mark.parametrize(
    "width, resized, left", [(40, 32, 2), (50, 40, 6), (52, 41, 6), (54, 43, 8)]
)
@pytest.mark.parametrize("upright", [False, True])
def test_the_evaluation_crop_is_torchvisions(width, resized, left, upright):
    image = color_ramp(40, width)
    out = DEIT(image.swapaxes(0, 1) if upright else image)
    assert out.shape == (28, 28, 3)
    assert out.dtype == np.uint8
    if upright:
        out = out.swapaxes(0, 1)
    # A resize maps pixel centers linearly, and bicubic keeps a ramp a ramp.
    along = 4 * ((left + np.arange(28) + 0.5) * width / resized - 0.5)
    down = 4 * ((2 + np.arange(28) + 0.5) * 40 / 32 - 0.5)
    assert np.abs(out[:, :, 1] - along[None, :])[:, 2:-2].max() <= 1
    assert np.abs(out[:, :, 0] - down[:, None])[2:-2].max() <= 1
    assert (out[:, :, 2] == 7).all()


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("longer", [1, 3, 5, 7])
def test_transformers_rounds_half_a_pixel_down(longer, upright):
    """timm rounds to the even pixel. A row's gray level is its number."""
    numbers = np.arange(28 + longer, dtype=np.uint8)[:, None, None]
    image = np.tile(numbers, (1, 28, 3))
    image = image if upright else image.swapaxes(0, 1)
    for rule, first in (("transformers", longer // 2), ("timm", round(longer / 2))):
        out = Preprocessing(28, crop=1.0, rule=rule)(np.ascontiguousarray(image))
        assert out.shape == (28, 28, 3)
        assert out[0, 0, 0] == first


def test_transformers_resizes_rows_first():
    """Each pass is rounded and clipped to 0 .. 255, so the order shows."""
    image = 255 * np.random.default_rng(0).integers(0, 2, (90, 40, 3), np.uint8)
    out = Preprocessing(33, 1.0, "squash", rule="transformers")(image)
    rows = resize(image.swapaxes(0, 1), 33).swapaxes(0, 1)
    expected = resize(rows, 33)
    assert np.abs(out.astype(int) - expected).max() <= 2
    other = resize(resize(image, 33).swapaxes(0, 1), 33).swapaxes(0, 1)
    assert np.abs(other - expected).max() > 5


def resize(pixels, size):
    """Resize columns to `size` by Keys's cubic with a = -1/2, widened to antialias."""
    scale = len(pixels) / size
    wide = max(scale, 1)
    centers = (np.arange(size) + 0.5) * scale
    x = np.abs((np.arange(len(pixels)) + 0.5 - centers[:, None]) / wide)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.round(np.tensordot(weights, pixels, 1)), 0, 255).astype(int)


# A resized side is int(30 / .9) = 33; (33 - 30) / 2 = 1.5 -> 2 pixels are left out.
@pytest.mark.parametrize(
    "crop_mode, size", [("center", (44, 33)), ("squash", (33, 33))]
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crop_modes_and_interpolations_equal_pillows(crop_mode, size, interpolation):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    out = Preprocessing(30, 0.9, crop_mode, interpolation)(image)
    filter = Image.Resampling[interpolation.upper()]
    full = np.asarray(Image.fromarray(image).resize(size, filter))
    left = (size[0] - 30) // 2 + (size[0] == 33)
    np.testing.assert_array_equal(out, full[2:32, left : left + 30])


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("longer", [0, 1, 700])
def test_a_thin_images_crop_is_torchvisions(longer, upright):
    """The image has a wave along it. Without cuts it is resized like other images."""
    length = 20 * MAX_ASPECT + longer
    wave = 120 + 100 * np.sin(np.arange(length) / 5)
    image = np.repeat(wave.astype(np.uint8)[None, :, None], 20, 0).repeat(3, 2)
    full = resize_exactly(image, 32, int(32 * length / 20))
    left = round((full.shape[1] - 28) / 2)
    truth = full[2:30, left : left + 28].astype(int)
    out = DEIT(image.swapaxes(0, 1) if upright else image)
    out = out.swapaxes(0, 1) if upright else out
    # Half a pixel more or less: the wave has at most 20 gray levels a pixel.
    assert np.abs(out - truth).max() <= (0 if longer == 0 else 14)


def test_evaluation_leaves_images_of_its_size_unchanged():
    image = color_ramp(32, 32)
    np.testing.assert_array_equal(Preprocessing(32)(image), image)
    image = color_ramp(48, 48)
    np.testing.assert_array_equal(Preprocessing(48, resize="none")(image), image)


def test_an_unresized_image_of_another_size_is_refused():
    image = color_ramp(47, 48)
    with refused("the image has 47x48 pixels"):
        Preprocessing(48, resize="none")(image)
    with refused("the image has 47x48 pixels"):
        train_transform(48, crop="shift")(image, np.random.default_rng(0))
