"""Crops against positions by hand: in a ramp a value is its position."""

import itertools

import numpy as np
import pytest

from imagepiece_jax.data.augment import random_crop
from tests.helpers.noise_images import color_ramp

AREA = (0.08, 1.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_crop_boxes_have_the_recipes_distribution():
    draws = map(rng, range(4000))
    boxes = [random_crop.draw_crop_box(300, 400, draw, AREA) for draw in draws]
    top, left, tall, wide = np.array(boxes).T
    assert top.min() >= 0 and (top + tall).max() <= 300
    assert left.min() >= 0 and (left + wide).max() <= 400
    # Without rejection the area is uniform and the log aspect symmetric. Only large
    # boxes are rejected, so the lower half shows it: P(a < .31) / P(a < .54) = 1/2.
    area = tall * wide / (300 * 400)
    small = area[area < 0.54]
    assert 0.075 < area.min() < 0.09
    assert abs((small < 0.31).mean() - 0.5) < 0.04  # 4 standard deviations
    aspect = np.log(wide / tall)[area < 0.31]
    assert abs(aspect.mean()) < 0.03
    assert abs(aspect).max() < np.log(4 / 3) + 0.02
    assert abs(aspect.std() - np.log(16 / 9) / np.sqrt(12)) < 0.01
    # Small boxes' positions are uniform and reach both ends.
    position = (left / (400 - wide))[area < 0.31]
    assert abs(position.mean() - 0.5) < 0.04
    assert position.min() < 0.02 and position.max() > 0.98


@pytest.mark.parametrize(
    "height, width, box",
    [
        (10, 1000, (0, 493, 10, 13)),  # 13 = round(10 * 4/3), 493 = (1000 - 13) // 2
        (1000, 12, (492, 0, 16, 12)),  # 16 = 12 / (3/4), 492 = (1000 - 16) // 2
    ],
)
def test_thin_images_fall_back_to_the_center(height, width, box):
    assert random_crop.draw_crop_box(height, width, rng(), areas=(0.9, 1.0)) == box


def test_boxes_have_aspects_and_positions_and_use_equal_draws():
    wide = dict(areas=(0.1, 0.1), aspects=(2.0, 3.0))
    for seed in range(20):
        *_, height, width = random_crop.draw_crop_box(300, 300, rng(seed), **wide)
        assert 1.9 < width / height < 3.1
    quarter = dict(areas=(0.25, 0.25), aspects=(1.0, 1.0))
    draws = map(rng, range(100))
    boxes = {random_crop.draw_crop_box(2, 2, draw, **quarter) for draw in draws}
    assert boxes == {(0, 0, 1, 1), (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 1, 1)}
    first = rng(3)
    second = rng(3)
    random_crop.draw_crop_box(300, 300, first, AREA)  # fits soon
    random_crop.draw_crop_box(3, 3000, second, AREA)  # never fits
    assert first.random() == second.random()


def test_a_random_crop_shows_its_box():
    image = color_ramp(40, 60)
    top, left, tall, wide = random_crop.draw_crop_box(40, 60, rng(5), AREA)
    out = random_crop.random_resized_crop(image, 20, rng(5), AREA)
    along = 4 * (left + (np.arange(20) + 0.5) * wide / 20 - 0.5)
    down = 4 * (top + (np.arange(20) + 0.5) * tall / 20 - 0.5)
    assert np.abs(out[:, :, 1] - along[None, :])[:, 3:-3].max() <= 1.5
    assert np.abs(out[:, :, 0] - down[:, None])[3:-3].max() <= 1.5


def test_shift_moves_by_every_offset_and_pads_with_zeros():
    image = color_ramp(8, 8) + 1  # no zero inside
    padded = np.zeros((12, 12, 3), np.uint8)
    padded[2:10, 2:10] = image
    offsets = itertools.product(range(5), range(5))
    expected = {padded[y : y + 8, x : x + 8].tobytes() for y, x in offsets}
    shifted = [random_crop.shift_image(image, draw, 2) for draw in map(rng, range(300))]
    assert {image.tobytes() for image in shifted} == expected


def test_half_of_the_images_are_mirrored():
    image = color_ramp(4, 6)
    flipped = 0
    for seed in range(1000):
        out = random_crop.flip_image(image, rng(seed))
        flipped += out[0, 0, 1] == 20
        np.testing.assert_array_equal(out, image[:, ::-1] if out[0, 0, 1] else image)
    assert abs(flipped - 500) < 64  # 4 standard deviations
