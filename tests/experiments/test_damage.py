"""Damage: its form and its strength, by hand."""

import numpy as np
import pytest
from PIL import Image

from experiments import damage


def photograph(side=32):
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    large = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(large)


@pytest.mark.parametrize("name", damage.DAMAGE)
def test_damage_keeps_the_form_and_is_drawn_by_the_index(name):
    change = damage.DAMAGE[name]
    pixels = photograph()
    batch = {
        "image": np.stack([pixels, pixels])[None],
        "index": np.array([[3, 4]]),
        "label": np.array([[0, 1]]),
    }
    found = damage.damaged(batch, change)
    assert found["image"].shape == (1, 2, 32, 32, 3)
    assert found["image"].dtype == np.uint8
    np.testing.assert_array_equal(found["image"][0, 1], change(pixels, 4))
    np.testing.assert_array_equal(found["label"], batch["label"])
    differ = np.any(found["image"][0, 0] != found["image"][0, 1])
    assert differ == name.startswith("noise")


def test_damage_has_its_strength():
    gray = np.full((128, 128, 3), 128, np.uint8)
    noise = damage.add_noise(gray, 0, std=0.1).astype(float) - 128
    # 49,152 draws: their deviation strays by a third of a percent.
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    point = np.zeros((33, 33, 3), np.uint8)
    point[16, 16] = 255
    assert damage.blur(point, 0, radius=2)[16, 16, 0] < 255 / 8
    np.testing.assert_array_equal(damage.blur(gray, 0, radius=2), gray)
    pixels = photograph().astype(int)
    errors = []
    for quality in (95, 25, 10):
        stored = damage.compress(photograph(), 0, quality)
        errors.append(np.abs(stored - pixels).mean())
    assert errors == sorted(errors)
    assert errors[0] < errors[2]
