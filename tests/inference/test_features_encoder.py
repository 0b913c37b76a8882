"""Pooled vectors, patch features and intermediate layers of whole models."""

import chex
import numpy as np
import pytest

from imagepiece_jax.inference.features import features
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.pretrained import Pretrained
from tests import oracles
from tests.models import tiny
from tests.refused import refused

DINOV2 = Architecture(registers=2, prefix_positions=False, layer_scale=True)
TOME = "tome:r=4"  # 25 image tokens, 21, 17, 13
# Drops 5 tokens of 25 at block 1; merges some at block 0.
PIECE = tiny.changed(tiny.IMAGEPIECE, merge_blocks=(0,), prune_blocks=(1,))


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_layer_is_what_a_shorter_model_ends_with():
    """One of a block, which is the first of two."""
    vit = tiny.pretrained(arch=DINOV2, depth=2)
    images = tiny.images(2)
    found = features(vit, images, layers=(1, 0))
    assert len(found.layers) == 2
    assert found.pooled.shape == (2, tiny.WIDTH)
    for depth, layer in zip((2, 1), found.layers, strict=True):
        short = tiny.model(arch=DINOV2, depth=depth)
        out = tiny.compiled(short.apply)(vit.variables, images)
        chex.assert_shape(layer.patches, (2, 5, 5, tiny.WIDTH))
        close(layer.patches.reshape(2, 25, -1), out.tokens[:, 3:])
        close(layer.prefix, out.tokens[:, :3])
        assert not layer.dropped.any()
    close(found.pooled, found.prefix[:, 0])
    for one, other in zip(found[1:4], found.layers[0], strict=True):
        close(one, other)


@pytest.fixture(scope="module")
def reduced():
    """(a model that merges and drops, its Outputs)."""
    vit = tiny.pretrained(PIECE, depth=2)
    return vit, tiny.compiled(vit.model.apply)(vit.variables, tiny.images(2))


@pytest.mark.parametrize("fill", ["nearest", "last"])
def test_after_a_reduction_every_patch_has_the_feature_of_its_token(reduced, fill):
    """By the map from patches to tokens."""
    vit, out = reduced
    found = features(vit, tiny.images(2), fill=fill, layers=[0, 1])
    source = np.asarray(tiny.slots(out))
    assert 0 < (source == -1).sum() < source.size
    np.testing.assert_array_equal(found.dropped.reshape(2, 25), source == -1)
    norm = vit.variables["params"]["norm"]
    for image in range(2):
        values = out.tokens[image, 1:]
        steps = []
        normed = []
        for inputs, result in zip(out.reducer_inputs, out.results, strict=True):
            x = inputs.x[image]
            steps.append((x, result.dest[image]))
            normed.append((oracles.layer_norm(x, norm), result.dest[image]))
        want = {
            "nearest": oracles.nearest_values(values, steps),
            "last": oracles.last_values(values, normed),
        }
        close(found.patches[image].reshape(25, -1), want[fill])
    early, late = found.layers
    assert not early.dropped.any()  # what is merged is not gone
    np.testing.assert_array_equal(late.dropped, found.dropped)
    close(late.patches, found.patches)
    close(late.prefix, found.prefix)


def test_layers_without_norm_are_the_residual_stream():
    """By the model's own epsilon, which counts where features are small."""
    vit = tiny.pretrained(TOME, arch=Architecture(norm_eps=0.5), depth=2)
    found = features(vit, tiny.images(2), layers=1, reshape=False, norm=False)
    (plain,) = found.layers
    params = vit.variables["params"]["norm"]
    for one, other in zip(plain[:2], (found.patches, found.prefix), strict=True):
        close(oracles.layer_norm(one, params, 0.5), other)
    chex.assert_shape(found.patches, (2, 25, tiny.WIDTH))
    chex.assert_shape(found.dropped, (2, 25))


def test_a_pooled_vector_is_what_the_head_reads():
    arch = Architecture(class_token=False, pool="mean", final_norm=False, fc_norm=True)
    vit = tiny.pretrained(TOME, arch=arch, depth=1, image_size=(12, 20))
    found = features(vit, tiny.images(2, side=(12, 20)))
    chex.assert_shape(found.patches, (2, 3, 5, tiny.WIDTH))
    chex.assert_shape(found.prefix, (2, 0, tiny.WIDTH))
    mean = np.asarray(found.patches, float).mean(axis=(1, 2))
    close(found.pooled, oracles.layer_norm(mean, vit.variables["params"]["fc_norm"]))


@pytest.mark.parametrize(
    "option, value",
    [
        ("layers", 4),
        ("fill", "mean"),
        ("images", np.zeros((1, 20, 20, 3), np.int32)),
        ("images", np.zeros((1, 20, 24, 3))),
    ],
)
def test_what_does_not_fit_is_refused(option, value):
    vit = Pretrained(tiny.model(TOME), {"params": {}})
    with refused(option):
        features(vit, **{"images": tiny.images(1), option: value})
