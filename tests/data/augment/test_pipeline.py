"""Order and randomness of augmentation in the step; random erasing."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.data.augment import pipeline
from imagepiece_jax.data.config import AugmentConfig
from tests.helpers.oracles_augment import erased_boxes, photographs

COUNT = 6
SIDE = 24
HALF = ((0.5,) * 3, (0.5,) * 3)  # a mean and a standard deviation


def augment(**fields):
    """An AugmentConfig that does nothing else."""
    numbers = ("prob", "magnitude", "magnitude_std", "erase_prob")
    return AugmentConfig(**{"layers": 0} | dict.fromkeys(numbers, 0.0) | fields)


POLICY = augment(layers=1, prob=0.5, magnitude=9.0, magnitude_std=0.5)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def boxes(prob=1.0):
    draw = jax.vmap(lambda key: pipeline.draw_erased_box(key, 224, 224, prob))
    return np.asarray(jax.jit(draw)(keys(6000)))


def test_steps_come_in_the_recipe_s_order(monkeypatch):
    seen = []

    def watch(module, name, key_at=None):
        def step(images, *rest):
            key = None if key_at is None else jax.random.key_data(rest[key_at])
            seen.append((name, None if key is None else key.tolist(), rest))
            return images + 1

        monkeypatch.setattr(module, name, step)

    watch(pipeline, "randaugment", 0)
    watch(pipeline, "normalize")
    watch(pipeline, "erase_randomly", 0)
    full = dataclasses.replace(POLICY, erase_prob=0.5)
    images = jnp.zeros((2, 3, 3, 3))
    out = pipeline.augment_batch(images, full, *HALF, lambda: keys(2))
    assert (out == 3).all()
    names, used, rest = zip(*seen, strict=True)
    assert names == ("randaugment", "normalize", "erase_randomly")
    assert rest[0][1:] == (full, (128, 128, 128))
    assert rest[1] == HALF
    assert rest[2][1] == 0.5
    own = [*map(tuple, used[0]), *map(tuple, used[2])]
    assert len(own) == 4 == len(set(own)), "two steps, two images"


def test_keys_are_drawn_for_any_augmentation_and_else_for_none():
    images = jnp.asarray(photographs(2, SIDE, SIDE))
    drawn = []

    def draw():
        drawn.append(keys(2))
        return drawn[-1]

    normalized = pipeline.augment_batch(images, augment(), *HALF, draw)
    np.testing.assert_array_equal(normalized, pipeline.normalize(images, *HALF))
    assert not drawn
    for fields in (
        {"layers": 1},
        {"erase_prob": 1.0},
        {"layers": 1, "erase_prob": 1.0},
    ):
        pipeline.augment_batch(images, augment(**fields), *HALF, draw)
    assert len(drawn) == 3


def test_one_program_serves_every_draw():
    chex.clear_trace_counter()
    full = augment(erase_prob=0.5)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def once(images, keys):
        return pipeline.augment_batch(images, full, *HALF, lambda: keys)

    images = photographs(COUNT, SIDE, SIDE)
    one = np.asarray(once(images, keys(COUNT, 0)))
    two = np.asarray(once(images, keys(COUNT, 1)))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(once(images, keys(COUNT, 1)), two)
    order = np.array([3, 1, 5, 0, 4, 2])
    moved = once(images[order], keys(COUNT, 1)[order])
    np.testing.assert_array_equal(moved, two[order])


def test_erased_boxes_have_the_reference_s_distribution():
    top, left, tall, wide = boxes().T
    assert (tall > 0).all(), "a try in ten always fits"
    assert top.min() >= 0 and (top + tall).max() <= 224
    assert left.min() >= 0 and (left + wide).max() <= 224
    # Numbers of the reference's loop, whose rejections favour small, square boxes.
    slow = erased_boxes(np.random.default_rng(0), 6000, 224)
    area = tall * wide / 224**2
    aspect = np.log(tall / wide)
    slow_area = slow.prod(1) / 224**2
    slow_aspect = np.log(slow[:, 0] / slow[:, 1])
    quantiles = np.linspace(0.05, 0.95, 7)
    both = (area, slow_area, 0.009), (aspect, slow_aspect, 0.11)
    for mine, theirs, tolerance in both:
        difference = np.quantile(mine, quantiles) - np.quantile(theirs, quantiles)
        assert np.abs(difference).max() < tolerance  # 4 standard deviations
    # The place is uniform and both ends are reached.
    place = top / (224 - tall)
    assert abs(place.mean() - 0.5) < 0.016
    assert (place.min(), place.max()) == (0, 1)
    assert abs(np.corrcoef(top / (224 - tall), left / (224 - wide))[0, 1]) < 0.052


def test_erasing_happens_with_its_probability():
    erased = boxes(0.25)[:, 2] > 0
    assert abs(erased.mean() - 0.25) <= 0.023  # 4 standard deviations
    np.testing.assert_array_equal(boxes(0.25)[erased], boxes()[erased])


def test_erased_pixels_are_standard_normal_each():
    images = np.full((300, SIDE, SIDE, 3), 7, np.float32)
    out = np.asarray(jax.jit(pipeline.erase_randomly)(images, keys(300), 0.5))
    erased = (out != 7).any(-1)
    assert (erased == (out != 7).all(-1)).all()
    hit = erased.any((1, 2))
    for one in erased[hit]:
        rows = np.flatnonzero(one.any(1))
        columns = np.flatnonzero(one.any(0))
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert one.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    noise = out[erased]  # about 150 boxes of 100 pixels
    assert len(noise) > 10000
    assert len(np.unique(noise)) > 0.99 * noise.size
    assert max(abs(noise.mean()), abs(noise.std() - 1)) < 0.02
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.04
