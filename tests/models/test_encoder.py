"""Pooled vectors, patch features and intermediate layers of whole models."""

import inspect

import chex
import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.common import progress
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.features import features
from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.methods import METHODS
from tests import oracles
from tests.models import tiny

DINOV2 = Architecture(registers=2, prefix_positions=False, layer_scale=True)
TOME = {"name": "tome", "r": 4}  # 25 image tokens, 21, 17, 13
# Drops 5 tokens of 25 at block 1; merges some at block 0.
PIECE = tiny.IMAGEPIECE | {"merge_blocks": (0,), "prune_blocks": (1,)}


def small(reduction=None, **options):
    model = tiny.model(reduction, **options)
    return model, tiny.variables(model)


def slow_norm(x, params, eps=1e-6):
    x = np.asarray(x, float)
    centered = x - x.mean(axis=-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)
    return scaled * params["scale"] + params["bias"]


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_layer_is_what_a_shorter_model_ends_with():
    """One of a block, which is the first of two."""
    model, variables = small(arch=DINOV2, depth=2)
    images = tiny.images(2)
    found = features(Pretrained(model, variables), images, layers=(1, 0))
    assert len(found.layers) == 2 and found.pooled.shape == (2, tiny.WIDTH)
    for depth, layer in zip((2, 1), found.layers, strict=True):
        short = tiny.model(arch=DINOV2, depth=depth)
        out = tiny.compiled(short.apply)(variables, images)
        chex.assert_shape(layer.patches, (2, 5, 5, tiny.WIDTH))
        close(layer.patches.reshape(2, 25, -1), out.tokens[:, 3:])
        close(layer.prefix, out.tokens[:, :3])
        assert not layer.dropped.any()
    close(found.pooled, found.prefix[:, 0])
    for one, other in zip(found[1:4], found.layers[0], strict=True):
        close(one, other)


@pytest.mark.parametrize("fill", ["nearest", "last", "class"])
def test_after_a_reduction_every_patch_has_the_feature_of_its_token(fill):
    """By the map from patches to tokens."""
    model, variables = small(PIECE, depth=2)
    found = features(
        Pretrained(model, variables), tiny.images(2), fill=fill, layers=[0, 1]
    )
    out = tiny.compiled(model.apply)(variables, tiny.images(2))
    source = np.asarray(tiny.slots(out))
    dropped = source == -1
    nearest = [
        oracles.nearest_values(
            out.tokens[image, 1:],
            [
                (taps.x[image], result.dest[image])
                for taps, result in zip(out.taps, out.results, strict=True)
            ],
        )
        for image in range(2)
    ]
    np.testing.assert_array_equal(found.dropped.reshape(2, 25), dropped)
    assert 0 < dropped.sum() < dropped.size
    patches = np.asarray(found.patches).reshape(2, 25, -1)
    for image, patch in np.ndindex(2, 25):
        slot = source[image, patch]
        if slot >= 0:
            close(patches[image, patch], out.tokens[image, 1 + slot])
        elif fill == "class":
            close(patches[image, patch], out.tokens[image, 0])
        elif fill == "nearest":
            close(patches[image, patch], nearest[image][patch])
    early, late = found.layers
    assert not early.dropped.any()  # what is merged is not gone
    np.testing.assert_array_equal(late.dropped, found.dropped)
    close(late.patches, found.patches)
    close(late.prefix, found.prefix)


@pytest.mark.parametrize("name", ["none", "tome", "evit", "token_learner"])
def test_as_many_tokens_as_asked_for(name):
    """By features, and by the program of `optimize`, which pads its images."""
    reduction = {"name": name} | METHODS[name].small
    tokens = {"none": 25, "token_learner": 8}.get(name, 12)
    vit = Pretrained(*small(reduction), reduction)
    found = jax.tree.map(np.asarray, features(vit, tiny.images(2), tokens=tokens))
    chex.assert_shape(found.tokens, (2, tokens, tiny.WIDTH))
    assert found.source.shape == found.patches.shape[:-1] == (2, 5, 5)
    np.testing.assert_array_equal(found.source == -1, found.dropped | (tokens == 8))
    for image in range(2):
        held = np.unique(found.source[image][found.source[image] >= 0])
        assert len(held) == (0 if tokens == 8 else tokens)
        places = found.coordinates[image].tolist()
        assert places == sorted(places)
        for slot in held:
            inside = np.argwhere(found.source[image] == slot)
            assert found.size[image, slot] == len(inside)
            close(found.coordinates[image, slot], inside.mean(axis=0))
            for row, column in inside:
                close(found.patches[image, row, column], found.tokens[image, slot])
    program = optimize(vit, batch_size=3, tokens=tokens)
    for field, values in program(tiny.images(2))._asdict().items():
        close(values, getattr(found, field))


def test_tokens_are_normed_as_patches_are():
    """In float32, where the model computes in bfloat16."""
    reduction = {"name": "evit", "blocks": (0,)}
    vit = Pretrained(*small(reduction, depth=1, dtype="bfloat16"), reduction)
    found = features(vit, tiny.images(1), tokens=9)
    assert found.tokens.dtype == found.patches.dtype == np.float32
    kept = np.asarray(found.source[0]) >= 0
    of_patches = found.tokens[0][found.source[0][kept]]
    np.testing.assert_array_equal(of_patches, found.patches[0][kept])


def test_without_a_number_no_tokens_are_listed():
    found = features(Pretrained(*small(depth=1)), tiny.images(1))
    assert found.tokens is found.size is found.source is found.coordinates is None


def test_learned_tokens_are_of_one_number():
    reduction = {"name": "token_learner"} | METHODS["token_learner"].small
    vit = Pretrained(*small(reduction), reduction)
    with pytest.raises(InputError, match="tokens is 9, but 'token_learner' has"):
        features(vit, tiny.images(1), tokens=9)
    vit = Pretrained(vit.model, {"params": {}}, reduction)  # which is of no number
    with pytest.raises(InputError, match="^variables: params/.* is missing, in the mo"):
        features(vit, tiny.images(1), tokens=9)


def test_tokens_of_an_unknown_reduction_are_refused():
    vit = Pretrained(tiny.model(TOME), {"params": {}})
    with pytest.raises(InputError, match="tokens is 9, but the model has no record of"):
        features(vit, tiny.images(1), tokens=9)
    vit = Pretrained(tiny.model(TOME), {"params": {}}, TOME)
    for tokens, shown in ((0, "0"), (26, "26"), (True, "True"), ("9", "'9'")):
        with pytest.raises(InputError, match=f"tokens is {shown}; .* from 1 to 25"):
            features(vit, tiny.images(1), tokens=tokens)


def test_layers_without_norm_are_the_residual_stream():
    """By the model's own epsilon, which counts where features are small."""
    model, variables = small(TOME, arch=Architecture(norm_eps=0.5), depth=2)
    options = {"layers": 1, "reshape": False, "norm": False}
    found = features(Pretrained(model, variables), tiny.images(2), **options)
    (plain,), params = found.layers, variables["params"]["norm"]
    for one, other in zip(plain[:2], (found.patches, found.prefix), strict=True):
        close(slow_norm(one, params, 0.5), other)
    chex.assert_shape(found.patches, (2, 25, tiny.WIDTH))
    chex.assert_shape(found.dropped, (2, 25))


def test_a_pooled_vector_is_what_the_head_reads():
    arch = Architecture(class_token=False, pool="mean", final_norm=False, fc_norm=True)
    model, variables = small(TOME, arch=arch, depth=1, image_size=(12, 20))
    images = tiny.images(2, side=(12, 20))
    prepared = Preprocessing((12, 20))
    found = features(Pretrained(model, variables, None, prepared), images)
    chex.assert_shape(found.patches, (2, 3, 5, tiny.WIDTH))
    chex.assert_shape(found.prefix, (2, 0, tiny.WIDTH))
    mean = np.asarray(found.patches, float).mean(axis=(1, 2))
    close(found.pooled, slow_norm(mean, variables["params"]["fc_norm"]))


def test_it_is_part_of_the_package_and_of_other_programs(
    monkeypatch, capsys, traced_once
):
    model, variables = small(depth=1)
    assert inspect.unwrap(imagepiece_jax.features) is inspect.unwrap(features)

    @tiny.jit
    def norms(variables, images):
        return (features(Pretrained(model, variables), images).patches ** 2).sum(
            axis=-1
        )

    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    found = features(Pretrained(model, variables), tiny.images(2))
    assert capsys.readouterr().err == "compiling the features ..\n"
    close(norms(variables, tiny.images(2)), (found.patches**2).sum(axis=-1))


def test_pixels_are_normalized():
    model = tiny.model(TOME, depth=2)
    variables = tiny.variables(model)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), np.uint8)
    want = features(
        Pretrained(model, variables), normalize(pixels, model.mean, model.std)
    )
    got = features(Pretrained(model, variables), pixels)
    chex.assert_trees_all_close(got, want, rtol=1e-7, atol=1e-5)
    with pytest.warns(UserWarning, match="from 0 to 1, as pixels before normal"):
        features(Pretrained(model, variables), np.float32(pixels) / 255)


@pytest.mark.parametrize(
    "images, options, sentence",
    [
        (
            None,
            {"layers": 4},
            "layers is 4; allowed: 0 to 3 for the last blocks",
        ),
        (None, {"layers": -1}, "layers is -1; allowed: 0 to 3"),
        (
            None,
            {"layers": [0, 3]},
            r"layers is \[0, 3\]; .* or blocks from 0 to 2",
        ),
        (None, {"layers": True}, "layers is True; allowed:"),
        (None, {"fill": "mean"}, "fill is 'mean'; allowed: nearest, last"),
        (None, {"fill": ["x"]}, r"fill is \['x'\]; allowed: nearest"),
        (None, {"norm": "x"}, "norm is 'x'; allowed: True, False"),
        (None, {"reshape": 1}, "reshape is 1; allowed: True, False"),
        (None, {"fuser": 1}, "fuser is 1; allowed: functions with a hash"),
        (
            np.zeros((1, 20, 20, 3), np.int32),
            {},
            "images is of type int32; allowed: floats, .*, or uint8",
        ),
        ("a.jpg", {}, "images is str; allowed: floats"),
        (np.zeros((1, 20, 24, 3)), {}, r"shape \(1, 20, 24, 3\); allowed: .* of 20x20"),
        (np.zeros((20, 20, 3)), {}, r"images is of shape \(20, 20, 3\); allowed:"),
        (np.zeros((0, 20, 20, 3)), {}, "allowed: one or more images of 20x20"),
    ],
)
def test_what_does_not_fit_is_refused(images, options, sentence):
    model = tiny.model()
    images = tiny.images(1) if images is None else images
    with pytest.raises(InputError, match=sentence):
        features(Pretrained(model, tiny.shapes(model)), images, **options)


def test_the_class_tokens_feature_is_not_there_for_models_without_one():
    arch = Architecture(class_token=False, registers=1, pool="mean")
    with pytest.raises(InputError, match="fill is 'class', but this model has no"):
        features(
            Pretrained(tiny.model(arch=arch), {"params": {}}),
            tiny.images(1),
            fill="class",
        )
