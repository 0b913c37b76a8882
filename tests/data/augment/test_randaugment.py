import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.data.augment import randaugment
from imagepiece_jax.data.augment.randaugment import OPERATION_NAMES, OperationDraws
from tests.data.augment.test_pipeline import augment_config
from tests.helpers import oracles_augment

INTERPOLATED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
SIZE = (64, 48)
FILL = (124, 116, 104)  # ImageNet's mean as a pixel
POLICY = augment_config(layers=2, prob=0.5, magnitude=9.0, magnitude_std=0.5)

compiled_operations = jax.jit(randaugment.apply_operations)
draw = jax.jit(randaugment.draw_operations, static_argnums=1)
tables = jax.jit(randaugment.make_lookup_tables)


def apply(images, draws, fill=FILL):
    return compiled_operations(images, draws, np.array(fill, np.uint8))


@functools.cache
def pieces():
    """30 images: 24 pieces of photographs, and edge cases of formulas."""
    out = oracles_augment.photograph_pieces(30, *SIZE)
    out[24] = 128  # one value only
    out[25:27] = (250, 1, 90)
    out[25, 0, 0] = 0  # one pixel differs: nothing to equalize
    out[26, :32] = (0, 255, 91)
    out[27] = 255  # 500 pixels below white: equalizing leaves the range
    out[27].reshape(-1, 3)[:500] = (np.arange(500) // 2)[:, None]
    out[28:] = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3))
    return out


def fixed_draws(operation, magnitude, sign, applied=True):
    """Equal draws for every image, or arrays [B, 2]."""
    shape = (len(pieces()), 2)
    return OperationDraws(
        operation=np.broadcast_to(np.int32(operation), shape),
        is_applied=np.broadcast_to(np.asarray(applied), shape),
        magnitude=np.broadcast_to(np.float32(magnitude), shape),
        sign=np.broadcast_to(np.float32(sign), shape),
    )


def apply_by_pillow(images, draws, fill=FILL):
    out = []
    for image, *image_draws in zip(images, *draws, strict=True):
        out.append(oracles_augment.randaugment(image, image_draws, fill))
    return np.stack(out)


def assert_close(out, expected, name):
    """Equal to one gray level; a rotated pixel at the very edge may be in or out."""
    assert out.dtype == np.uint8
    error = np.abs(out.astype(int) - expected.astype(int))
    if name in INTERPOLATED:
        assert error.mean() < 0.01
        assert (error > 1).mean() < 1e-4
    else:
        assert error.max() <= 1
        assert error.mean() < 0.02


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_operations_at_magnitude_9_equal_pillows(name, sign):
    drawn = fixed_draws(OPERATION_NAMES.index(name), 9.0, sign, applied=[True, False])
    expected = apply_by_pillow(pieces(), drawn)
    assert_close(np.asarray(apply(pieces(), drawn)), expected, name)


def test_device_and_pillow_agree_on_any_draw():
    rng = np.random.default_rng(1)
    shape = (len(pieces()), 2)
    drawn = fixed_draws(
        operation=rng.integers(0, len(OPERATION_NAMES), shape),
        magnitude=rng.uniform(0, 10, shape),
        sign=rng.choice([-1, 1], shape),
        applied=rng.random(shape) < 0.7,
    )
    assert randaugment.fill_color((0.485, 0.456, 0.406)) == FILL
    fill = randaugment.fill_color((0.5, 0.5, 0.5))
    out = np.asarray(apply(pieces(), drawn, fill)).astype(int)
    expected = apply_by_pillow(pieces(), drawn, fill).astype(int)
    assert (expected != pieces()).any((1, 2, 3)).sum() > 17
    # A second operation may enlarge a small error: Solarize flips a level that crosses
    # its threshold. Such pixels must be few.
    shares_of_errors = (np.abs(out - expected) > 2).mean((1, 2, 3))
    assert shares_of_errors.max() < 0.01
    assert shares_of_errors.mean() < 5e-4


RAMP = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)


@pytest.mark.parametrize(
    "name, magnitude, expected",
    [
        # max(.1, .1): at least a tenth of the image is left.
        ("-Brightness", 10.0, lambda v: int(np.float32(0.1) * v)),
        ("Posterize", 10.0, lambda v: 0),  # 0 bits: black
        ("Posterize", 7.4, lambda v: v // 64 * 64),  # int(2.96) = 2
        ("Solarize", 10.0, lambda v: 255 - v),
        ("Solarize", 5.0, lambda v: v if v < 128 else 255 - v),
    ],
)
def test_extreme_magnitudes_by_hand(name, magnitude, expected):
    values = np.array([expected(v) for v in range(256)])
    sign = -1.0 if name.startswith("-") else 1.0
    drawn = OperationDraws(
        [OPERATION_NAMES.index(name.strip("-"))], [True], [magnitude], [sign]
    )
    by_pillow = oracles_augment.randaugment(RAMP[0], drawn)
    np.testing.assert_array_equal(by_pillow[:, :, 1].ravel(), values)
    arrays = (jnp.array(x) for x in (drawn.operation, drawn.magnitude, drawn.sign))
    np.testing.assert_array_equal(tables(RAMP, *arrays)[0, 2], values)


def test_draws_have_the_recipes_distribution():
    """Tolerances are four standard deviations."""
    keys = jax.random.split(jax.random.key(3), 6000)
    out = OperationDraws(*map(np.asarray, draw(keys, POLICY)))
    assert all(x.shape == (6000, 2) for x in out)
    shares = np.stack([(out.operation == k).mean(0) for k in range(15)])
    assert np.abs(shares - 1 / 15).max() < 0.013  # sqrt(1/15 * 14/15 / 6000) = .0032
    same = (out.operation[:, 0] == out.operation[:, 1]).mean()
    assert abs(same - 1 / 15) < 0.013  # with replacement, the layers independent
    for half in (out.is_applied, out.sign == 1):
        assert abs(half.mean() - 0.5) < 0.018
        assert abs((half[:, 0] == half[:, 1]).mean() - 0.5) < 0.026
    assert abs((out.is_applied == (out.sign == 1)).mean() - 0.5) < 0.018
    # N(9, .5) clamped to 10: 2.275 % of it lies beyond two deviations
    assert abs((out.magnitude == 10).mean() - 0.02275) < 0.0055
    quantiles = np.quantile(out.magnitude, [0.15866, 0.5, 0.84134])
    np.testing.assert_allclose(quantiles, [8.5, 9, 9.5], atol=0.03)
