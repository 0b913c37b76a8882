import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from imagepiece_jax.data.augment import mixup
from tests.helpers.rounding import assert_close

beta = jax.jit(jax.vmap(mixup.draw_beta, (0, None)))
cutmix_box = jax.jit(mixup.cutmix_box, static_argnums=(2, 3))
soft_targets = jax.jit(mixup.soft_targets, static_argnums=(1, 2))
mix_batch = jax.jit(mixup.mix_batch)
MIXING = {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "mixup_switch_prob": 0.5}


@functools.cache
def draw_mixes(**options):
    """4000 draws for images of 32 x 48."""
    options = types.SimpleNamespace(**MIXING | options)
    keys = jax.random.split(jax.random.key(0), 4000)
    mixes = jax.jit(jax.vmap(lambda key: mixup.draw_mix(key, 32, 48, options)))(keys)
    return jax.tree.map(np.asarray, mixes)


def test_soft_targets_and_no_mix():
    out = soft_targets(np.array([[3], [9]]), 10, 0.1)
    expected = np.full((2, 1, 10), 0.01)
    expected[0, 0, 3] = expected[1, 0, 9] = 0.91
    np.testing.assert_allclose(out, expected, atol=1e-7)
    options = types.SimpleNamespace(mixup=0.0, cutmix=0.0)
    assert mixup.draw_mix(jax.random.key(0), 6, 8, options) is None


@pytest.mark.parametrize(
    "share, center, box, share_outside",
    [
        # 224 * sqrt(.25) = 112, half of it above the image: 56 * 112 of 224 * 224
        (0.75, (0, 112), [0, 56, 56, 168], 0.875),
        (0.75, (100, 200), [44, 156, 144, 224], 1 - 112 * 80 / 224**2),
    ],
)
def test_cutmix_box_by_hand(share, center, box, share_outside):
    drawn, drawn_share = cutmix_box(np.float32(share), np.array(center), 224, 224)
    assert drawn.tolist() == box
    assert_close(drawn_share, share_outside, units=1)


def test_cutmix_boxes_reach_every_edge():
    out = draw_mixes(mixup=0, cutmix=1.0)
    assert out.is_cutmix.all()
    assert not draw_mixes(mixup=0.8, cutmix=0).is_cutmix.any()
    top, bottom, left, right = out.box.T
    np.testing.assert_allclose(
        out.own_share, 1 - (bottom - top) * (right - left) / (32 * 48), atol=1e-6
    )
    small = out.box[out.own_share > 0.97]
    edges = [*small[:, ::2].min(axis=0), *small[:, 1::2].max(axis=0)]
    assert edges == [0, 0, 32, 48]


@pytest.mark.parametrize("alpha", [0.05, 0.8, 4.0])
def test_beta_has_scipys_distribution(alpha):
    keys = jax.random.split(jax.random.key(1), 20000)
    drawn = np.asarray(beta(keys, np.float32(alpha)), np.float64)
    # Within 1e-7 of either end float32 has 0 and 1 alone.
    drawn = np.clip(drawn, 1e-7, 1 - 1e-7)
    truth = stats.beta(alpha, alpha)
    for limit in (1e-4, 0.01, 0.2, 0.5, 0.9, 0.999):
        expected = truth.cdf(limit)
        deviation = np.sqrt(expected * (1 - expected) / 20000)
        assert abs((drawn <= limit).mean() - expected) < 4.5 * deviation


def test_mixup_and_cutmix_have_their_shares():
    out = draw_mixes(mixup=0.3, cutmix=1.0, mixup_prob=0.6, mixup_switch_prob=0.2)
    assert abs(out.is_cutmix.mean() - 0.2) < 0.026  # 4 standard deviations
    blended = ~out.is_cutmix & (out.own_share < 1)
    assert abs(blended.mean() - 0.8 * 0.6) < 0.032
    # Each kind has its own alpha: Beta(.3, .3) has the variance 1 / 6.4
    assert abs(out.own_share[blended].var() - 1 / 6.4) < 0.012
    unmixed = np.flatnonzero(out.own_share == 1)
    assert abs(len(unmixed) / 4000 - 0.4) < 0.032


def mix_random_batch(own_share, box, is_cutmix, dtype):
    """(images, partners' images, mixed images, mixed targets) of four noise images."""
    images = np.random.default_rng(0).normal(size=(4, 6, 8, 3)).astype(dtype)
    targets = np.asarray(soft_targets(np.arange(4), 5, 0.1))
    drawn = mixup.Mix(np.float32(own_share), np.array(box), np.array(is_cutmix))
    mixed = mix_batch(drawn, (images, targets), (images[::-1], targets[::-1]))
    return images, images[::-1], *mixed


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mixup_blends_images_and_targets(dtype):
    batch = mix_random_batch(0.3, (0, 6, 0, 8), False, dtype)
    images, partners, mixed, mixed_targets = batch
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-8  # half a unit of the last place
    expected = 0.3 * np.float64(images) + 0.7 * np.float64(partners)
    np.testing.assert_allclose(np.float64(mixed), expected, rtol=tolerance, atol=1e-6)
    assert mixed.dtype == dtype
    assert mixed_targets.dtype == jnp.float32
    expected = [0.3 * 0.92 + 0.7 * 0.02, 0.3 * 0.02 + 0.7 * 0.92]
    assert_close(mixed_targets[0, 0::3], expected, units=8)
    assert_close(mixed_targets.sum(-1), 1, units=8)


def test_cutmix_pastes_the_partners_box_exactly():
    batch = mix_random_batch(0.75, (1, 4, 2, 6), True, jnp.bfloat16)
    images, partners, mixed, mixed_targets = batch
    expected = np.array(images)
    expected[:, 1:4, 2:6] = np.array(partners)[:, 1:4, 2:6]
    np.testing.assert_array_equal(np.asarray(mixed), expected)
    assert_close(mixed_targets[1, 1], 0.75 * 0.92 + 0.25 * 0.02, units=8)
