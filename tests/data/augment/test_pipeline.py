import functools

import jax
import numpy as np
import pytest

from imagepiece_jax.data.augment import pipeline
from imagepiece_jax.data.augment.randaugment import randaugment
from imagepiece_jax.data.config import AugmentConfig
from imagepiece_jax.data.normalize import normalize
from tests.helpers.oracles_augment import erased_boxes, photograph_pieces

COUNT = 6
SIDE = 24
HALF = ((0.5,) * 3, (0.5,) * 3)  # a mean and a standard deviation


def augment_config(**fields):
    """An AugmentConfig with these fields alone."""
    numbers = ("prob", "magnitude", "magnitude_std", "erase_prob")
    return AugmentConfig(**{"layers": 0} | dict.fromkeys(numbers, 0.0) | fields)


def image_keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def draw_boxes(prob=1.0):
    draw = jax.vmap(lambda key: pipeline.draw_erased_box(key, 224, 224, prob))
    return np.asarray(jax.jit(draw)(image_keys(6000)))


def test_augmentations_have_the_recipes_order_and_a_key_per_image():
    full = augment_config(layers=1, prob=0.5, magnitude=9.0, erase_prob=0.5)
    images = photograph_pieces(COUNT, SIDE, SIDE)
    keys = image_keys(COUNT)

    @jax.jit
    def augment(images, keys):
        return pipeline.augment_batch(images, full, *HALF, lambda: keys)

    @jax.jit
    def apply_in_order(images, keys):
        split_keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
        images = randaugment(images, split_keys[:, 2], full, (128, 128, 128))
        images = normalize(images, *HALF)
        return pipeline.erase_randomly(images, split_keys[:, 3], 0.5)

    out = np.asarray(augment(images, keys))
    np.testing.assert_array_equal(out, apply_in_order(images, keys))
    order = np.array([3, 1, 5, 0, 4, 2])
    permuted = augment(images[order], keys[order])
    np.testing.assert_array_equal(permuted, out[order])
    plain = pipeline.augment_batch(images, augment_config(), *HALF, pytest.fail)
    np.testing.assert_array_equal(plain, normalize(images, *HALF))


def test_erased_boxes_have_the_references_distribution():
    top, left, tall, wide = draw_boxes().T
    assert (tall > 0).all(), "a try in ten always fits"
    assert top.min() >= 0 and (top + tall).max() <= 224
    assert left.min() >= 0 and (left + wide).max() <= 224
    # The reference's loop rejects boxes, which favors small and square ones.
    slow_boxes = erased_boxes(np.random.default_rng(0), 6000, 224)
    area = tall * wide / 224**2
    aspect = np.log(tall / wide)
    slow_area = slow_boxes.prod(1) / 224**2
    slow_aspect = np.log(slow_boxes[:, 0] / slow_boxes[:, 1])
    quantiles = np.linspace(0.05, 0.95, 7)
    comparisons = (area, slow_area, 0.009), (aspect, slow_aspect, 0.11)
    for ours, theirs, tolerance in comparisons:
        difference = np.quantile(ours, quantiles) - np.quantile(theirs, quantiles)
        assert np.abs(difference).max() < tolerance  # 4 standard deviations
    # Positions are uniform and reach both ends.
    position = top / (224 - tall)
    assert abs(position.mean() - 0.5) < 0.016
    assert (position.min(), position.max()) == (0, 1)
    assert abs(np.corrcoef(top / (224 - tall), left / (224 - wide))[0, 1]) < 0.052


def test_images_are_erased_with_the_probability():
    erased = draw_boxes(0.25)[:, 2] > 0
    assert abs(erased.mean() - 0.25) <= 0.023  # 4 standard deviations
    np.testing.assert_array_equal(draw_boxes(0.25)[erased], draw_boxes()[erased])


def test_erased_pixels_are_standard_normal():
    images = np.full((300, SIDE, SIDE, 3), 7, np.float32)
    out = np.asarray(jax.jit(pipeline.erase_randomly)(images, image_keys(300), 0.5))
    erased = (out != 7).any(-1)
    for box in erased[erased.any((1, 2))]:
        assert box.sum() == (1 + np.ptp(np.argwhere(box), axis=0)).prod()
    noise = out[erased]  # about 150 boxes of 100 pixels
    assert len(noise) > 10000
    assert len(np.unique(noise)) > 0.99 * noise.size
    assert max(abs(noise.mean()), abs(noise.std() - 1)) < 0.02
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.04
