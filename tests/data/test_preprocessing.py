"""Evaluation's crop against hand-computed positions, torchvision's and Pillow's."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.preprocessing import MAX_ASPECT, Preprocessing, resize_exactly
from tests.helpers.noise_images import ramp, train_transform
from tests.helpers.refused_calls import refused

RNG = np.random.default_rng(0)
DEIT = Preprocessing(28, crop=0.875)


# int(28 / .875) = 32 is the short side; the long one is cut down to a whole pixel, and
# half a pixel of offset goes to the even one: 52 -> int(41.6) = 41 -> 6.5 -> 6 and
# 54 -> int(43.2) = 43 -> 7.5 -> 8
@pytest.mark.parametrize(
    "width, resized, left", [(40, 32, 2), (50, 40, 6), (52, 41, 6), (54, 43, 8)]
)
@pytest.mark.parametrize("upright", [False, True])
def test_evaluation_crop_is_where_torchvision_puts_it(width, resized, left, upright):
    image = ramp(40, width)
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
def test_transformers_cuts_half_a_pixel_off(longer, upright):
    """timm rounds it to the even pixel. Rows have their number as gray level."""
    numbers = np.arange(28 + longer, dtype=np.uint8)[:, None, None]
    image = np.tile(numbers, (1, 28, 3))
    image = image if upright else image.swapaxes(0, 1)
    for rule, first in (("transformers", longer // 2), ("timm", round(longer / 2))):
        out = Preprocessing(28, crop=1.0, rule=rule)(np.ascontiguousarray(image))
        assert out.shape == (28, 28, 3)
        assert out[0, 0, 0] == first


def test_transformers_resizes_rows_first():
    """By hand: each pass is rounded and cut to 0 .. 255, so the order shows."""
    image = 255 * np.random.default_rng(0).integers(0, 2, (90, 40, 3), np.uint8)
    fields = {"crop": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
    out = Preprocessing(33, **fields, rule="transformers")(image)
    rows = filtered(image.swapaxes(0, 1), 33).swapaxes(0, 1)
    wanted = filtered(rows, 33)
    assert np.abs(out.astype(int) - wanted).max() <= 2
    other = filtered(filtered(image, 33).swapaxes(0, 1), 33).swapaxes(0, 1)
    assert np.abs(other - wanted).max() > 5


def filtered(pixels, size):
    """Columns resized to `size` by Keys's cubic of a = -1/2, widened to antialias."""
    scale = len(pixels) / size
    wide = max(scale, 1)
    centers = (np.arange(size) + 0.5) * scale
    x = np.abs((np.arange(len(pixels)) + 0.5 - centers[:, None]) / wide)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(np.round(np.tensordot(weights, pixels, 1)), 0, 255).astype(int)


# int(30 / .9) = 33 is a resized side, of which (33 - 30) / 2 = 1.5 -> 2 are left out.
@pytest.mark.parametrize(
    "crop_mode, size", [("center", (44, 33)), ("squash", (33, 33))]
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_of_other_weights(crop_mode, size, interpolation):
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    out = Preprocessing(30, 0.9, crop_mode, interpolation)(image)
    how = Image.Resampling[interpolation.upper()]
    full = np.asarray(Image.fromarray(image).resize(size, how))
    left = (size[0] - 30) // 2 + (size[0] == 33)
    np.testing.assert_array_equal(out, full[2:32, left : left + 30])


WRONG = [("crop", 1.5), ("crop", 0), ("crop_mode", "border"), ("resize", "half")]
WRONG += [("interpolation", "lanczos"), ("rule", "torchvision")]


@pytest.mark.parametrize("field, value", WRONG)
def test_a_crop_that_there_is_not(field, value):
    with refused(field):
        Preprocessing(30, **{field: value})


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("longer", [0, 1, 700])
def test_of_a_thin_image_the_middle_is_seen_where_torchvision_sees_it(longer, upright):
    """A wave along the image; whole, it is resized as any other."""
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


def test_evaluation_leaves_small_images_alone():
    image = ramp(32, 32)
    np.testing.assert_array_equal(Preprocessing(32)(image), image)
    image = ramp(48, 48)
    np.testing.assert_array_equal(Preprocessing(48, resize="none")(image), image)


@pytest.mark.parametrize(
    "call",
    [
        Preprocessing(48, resize="none"),
        Preprocessing(16),
        lambda image: train_transform(48, crop="none")(image, RNG),
        lambda image: train_transform(48, crop="shift")(image, RNG),
    ],
)
def test_images_of_another_size_are_refused_where_nothing_resizes(call):
    with refused("the image has 47x48 pixels"):
        call(ramp(47, 48))
