import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models.layers import ConvStem, PatchStem, conv_stem_widths
from tests.helpers import oracles, tiny_vit
from tests.helpers.refused_calls import refused

SLOT = 4  # images on each of the devices that share batch statistics


def random_images(batch, side, seed=0):
    noise = np.random.default_rng(seed).normal(size=(batch, side, side, 3))
    return noise.astype(np.float32)


def slow_stem(variables, images, train):
    """(output, new statistics) of a ConvStem by loops, in float64."""
    params = variables["params"]
    statistics = {}
    x = images
    for name, used in variables["batch_stats"].items():
        kernel = params[name.replace("norm", "conv")]["kernel"]
        x = np.stack([oracles.convolution(image, kernel, 2, 1) for image in x])
        if train:
            old, used = used, {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
            statistics[name] = {k: 0.9 * old[k] + 0.1 * v for k, v in used.items()}
        deviation = np.sqrt(np.float64(used["var"]) + 1e-5)
        x = (x - used["mean"]) / deviation * params[name]["scale"]
        x = np.maximum(x + params[name]["bias"], 0)
    return x @ params["proj"]["kernel"][0, 0] + params["proj"]["bias"], statistics


def run_stem(stem, variables, images, is_train=True):
    mutable = ["batch_stats"] * is_train
    out, changed = stem.apply(variables, images, is_train, mutable=mutable)
    return out, changed.get("batch_stats", {})


@pytest.mark.parametrize("side, is_train", [(8, False), (12, False), (8, True)])
def test_conv_stem_equals_slow_convolutions(side, is_train):
    """Padding is one pixel on both sides, so an even side reads its first border."""
    stem = ConvStem(embed_dim=6, patch_size=4)
    images = random_images(3, side)
    variables = tiny_vit.fill(tiny_vit.shapes(stem, side))
    run = functools.partial(run_stem, stem, is_train=is_train)
    out, new = tiny_vit.jit(run)(variables, images)
    expected, statistics = slow_stem(variables, images, is_train)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    chex.assert_trees_all_close(dict(new), statistics, rtol=1e-5, atol=1e-6)


def test_a_patch_of_2_to_the_k_takes_k_convolutions():
    assert conv_stem_widths(384, 16) == (48, 96, 192, 384)
    assert conv_stem_widths(64, 2) == (64,)
    assert conv_stem_widths(64, 8) == (16, 32, 64)


@pytest.mark.parametrize("patch_size, embed_dim", [(12, 384), (1, 384), (16, 100)])
def test_an_impossible_conv_stem_is_named(patch_size, embed_dim):
    with refused(f"patch_size is {patch_size}", f"divides embed_dim, {embed_dim}"):
        conv_stem_widths(embed_dim, patch_size)


def test_convolutions_start_uniform_by_fan_in():
    arguments = jax.random.key(0), jnp.zeros((1, 8, 8, 3))
    conv, patch = (
        tiny_vit.jit(stem(embed_dim=64, patch_size=4).init)(*arguments)["params"]
        for stem in (ConvStem, PatchStem)
    )
    drawn = [(conv["conv_0"]["kernel"], 27), (conv["conv_1"]["kernel"], 9 * 32)]
    drawn += [(conv["proj"][name], 64) for name in ("kernel", "bias")]
    drawn += [(patch["proj"][name], 48) for name in ("kernel", "bias")]
    for values, fan_in in drawn:
        values = np.asarray(values).ravel() * fan_in**0.5  # now U(-1, 1)
        assert 1 - 8 / len(values) < np.abs(values).max() <= 1 + 1e-6
        # some four standard errors
        assert abs((values**2).mean() - 1 / 3) < 4 / len(values) ** 0.5


def test_two_devices_normalize_over_the_whole_batch():
    images = random_images(2 * SLOT, 8)
    probe = random_images(2 * SLOT, 4, seed=1).reshape(2 * SLOT, 2, 2, 12)
    whole = ConvStem(embed_dim=12, patch_size=4)
    shared = whole.clone(axis_name="devices")
    variables = tiny_vit.fill(tiny_vit.shapes(whole, 8))

    def step(stem, images, probe):
        def loss(params):
            out, new = run_stem(stem, variables | {"params": params}, images)
            return jnp.sum(out * probe), (out, new)

        return jax.grad(loss, has_aux=True)(variables["params"])

    halves = [x.reshape(2, SLOT, *x.shape[1:]) for x in (images, probe)]
    on_two_devices = jax.vmap(functools.partial(step, shared), axis_name="devices")
    gradients, (out, new) = tiny_vit.jit(on_two_devices)(*halves)
    on_one_device = tiny_vit.jit(functools.partial(step, whole))
    whole_gradients, (whole_out, whole_new) = on_one_device(images, probe)
    summed = jax.tree.map(lambda a: a.sum(axis=0), gradients)
    both_new = jax.tree.map(lambda a: np.stack([a, a]), whole_new)
    from_two = out.reshape(whole_out.shape), new, summed
    from_one = whole_out, both_new, whole_gradients
    chex.assert_trees_all_close(from_two, from_one, rtol=1e-4, atol=2e-5)
