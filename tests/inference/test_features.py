"""Features: maps of patches by hand, pooled vectors and layers of whole models."""

import pathlib
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

from imagepiece_jax.inference import features
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import (
    Assignment,
    Masking,
    Mixing,
    ReducerInputs,
    initial_state,
)
from tests.helpers import oracles, tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close
from tests.helpers.shallow_deit import deit_ti
from tests.helpers.small_runs import ROOT

DINOV2 = Architecture(registers=2, prefix_positions=False, layer_scale=True)
TOME = "tome:r=4"  # 25 image tokens, 21, 17, 13
# Drops 5 tokens of 25 at block 1; merges some at block 0.
PIECE = tiny_vit.changed(tiny_vit.IMAGEPIECE, merge_blocks=(0,), prune_blocks=(1,))
# Compiled as a whole: one by one, its operations take longer.
feature_map = tiny_vit.jit(features.feature_map, static_argnums=(1, 2, 3))
GRID = (2, 3)
TENSOR = types.SimpleNamespace(shape=(3, 20, 20, 3), dtype="torch.float32")  # of torch
CLASS = [100.0, -100.0]
# Six patches and what each of two channels has there.
PATCHES = [[1.0, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]


def state_of(patches):
    return initial_state(jnp.asarray([[CLASS, *patches]], jnp.float32))


@tiny_vit.jit
def outputs_of(state, *steps):
    """Outputs after `steps`: (result, a number then added to every token)."""
    results = []
    inputs = []
    for result, more in steps:
        inputs.append(ReducerInputs(state.x[:, 1:], state.size[:, 1:]))
        results.append(result)
        state = moves.apply_result(state, result)
        state = state.replace(x=state.x + more)
    return Outputs(None, None, state.x, state, tuple(results), tuple(inputs))


def slots(*dest, **options):
    n_out = max(dest) + 1
    return Assignment(jnp.asarray([dest], jnp.int32), n_out=n_out, **options)


def first_channel(features):
    assert features.shape == (1, *GRID, 2)
    return np.asarray(features[0, :, :, 0]).tolist()


def test_merged_patches_share_their_mean_and_fused_ones_the_fused_token():
    """1 and 3 become 2; then that token of two patches and 5 become (2 * 2 + 5) / 3."""
    first = slots(0, 1, 0, 2, 3, 4)
    outputs = outputs_of(state_of(PATCHES), (first, 0), (slots(0, 1, 2, 0, 3), 0))
    assert first_channel(feature_map(outputs, GRID)) == [[3, 2, 3], [4, 3, 6]]
    # EViT's: the last slot is a sum by weights, here a quarter of 2 and of 6.
    weight = jnp.asarray([[1, 0.25, 1, 1, 1, 0.25]])
    result = slots(0, 4, 1, 2, 3, 4, weight=weight, mean=False)
    outputs = outputs_of(state_of(PATCHES), (result, 0))
    assert first_channel(feature_map(outputs, GRID)) == [[1, 2, 3], [4, 5, 2]]


@pytest.mark.parametrize(
    "fill, lost",
    [
        # Patch 1 goes at once, patch 4 after 0.5 was added; 0.25 more is added then.
        ("last", (2, 5.5)),
        ("zero", (0, 0)),
        ("class", (100.75, 100.75)),
    ],
)
def test_dropped_patches_are_filled(fill, lost):
    first = slots(0, -1, 1, 2, 3, 4)
    outputs = outputs_of(state_of(PATCHES), (first, 0.5), (slots(0, 1, 2, -1, 3), 0.25))
    expected = [[1.75, lost[0], 3.75], [4.75, lost[1], 6.75]]
    assert first_channel(feature_map(outputs, GRID, fill)) == expected


def test_a_dropped_patch_follows_the_token_nearest_to_it_the_first_of_equals():
    """0 follows 1, which is dropped later, then 3; 5 follows 4, merged with 2."""
    degrees = np.radians([0, 10, 90, 30, 160, 155])
    patches = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    steps = (slots(-1, 0, 1, 2, 1, -1), 0), (slots(-1, 0, 1), 0)
    outputs = outputs_of(state_of(patches), *steps)
    features = feature_map(outputs, GRID)[0].reshape(6, 2)
    merged = (patches[2] + patches[4]) / 2
    kept = patches[3]
    assert_close(features, [kept, kept, merged, kept, merged, merged], units=8)
    patches = [[1.0, 0], [2, 2], [3, 3], [0, 4], [1, 1], [5, 5]]
    outputs = outputs_of(state_of(patches), (slots(0, 1, 2, 3, -1, -1), 0))
    features = feature_map(outputs, GRID, "nearest")[0].reshape(6, 2)
    assert features[4:].tolist() == [[2, 2], [2, 2]]


def test_learned_tokens_are_spread_by_their_weights_of_each_patch():
    """Tokens of 12 and 24; shares of a patch are 1:0, 1:1, 1:3, 0:1, 3:1, and none."""
    matrix = jnp.asarray([[[0.2, 0.1, 0.1, 0, 0.6, 0], [0, 0.1, 0.3, 0.4, 0.2, 0]]])
    outputs = outputs_of(state_of(PATCHES), (Mixing(matrix), 0))
    learned = jnp.asarray([[CLASS, [12.0, 1], [24.0, 2]]])
    outputs = outputs.replace(state=outputs.state.replace(x=learned))
    got = feature_map(outputs, GRID)[0, ..., 0]
    assert_close(got, [[12, 18, 21], [24, 15, 0]], units=8)
    matrix = jnp.asarray([[[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]]])
    drop = slots(0, -1, 1, 2, 3, 4)
    outputs = outputs_of(state_of(PATCHES), (drop, 0), (Mixing(matrix), 0))
    got = first_channel(feature_map(outputs, GRID, "last"))
    low = 1 / 2 + 3 / 4 + 4 / 4
    high = 5 / 2 + 6 / 2
    assert got == [[low, 2, low], [low, high, high]]


@pytest.mark.parametrize(
    "fill, state, results, said",
    [
        ("mean", {}, (), "fill"),
        ("class", {"num_prefix": 0}, (), "fill"),
        ("last", {"mask": jnp.ones((1, 6))}, (), "outputs"),
        ("last", {}, (Masking(np.ones((1, 6))),), "outputs come from masked training"),
    ],
)
def test_impossible_maps_are_refused(fill, state, results, said):
    outputs = outputs_of(state_of(PATCHES))
    inputs = ReducerInputs(outputs.state.x[:, 1:], outputs.state.size[:, 1:])
    state = outputs.state.replace(**state)
    inputs = (inputs,) * len(results)
    outputs = outputs.replace(state=state, results=results, reducer_inputs=inputs)
    with refused(said):
        features.feature_map(outputs, GRID, fill)


def test_photographs_are_taken_as_a_predictor_takes_them(tmp_path):
    vit = tiny_vit.pretrained(depth=1).with_preprocessing(crop=0.8)
    images = noise(2, 30, 44)
    photographs = [Image.fromarray(image) for image in images]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    photographs[0].save(tmp_path / "turned.png", exif=exif)
    turned = images[0].swapaxes(0, 1)[:, ::-1]
    pixels = np.stack([vit.preprocessing(turned), vit.preprocessing(images[1])])
    wanted = features.features(vit, pixels).patches
    path = tmp_path / "turned.png"
    for several in ([path, photographs[1]], iter([path, images[1]])):
        found = features.features(vit, several).patches
        np.testing.assert_array_equal(found, wanted)
    for one in (photographs[1], images[1], jnp.asarray(images[1])):
        found = features.features(vit, one).patches
        np.testing.assert_allclose(found, wanted[1:], rtol=1e-5, atol=1e-5)
    with pytest.warns(UserWarning, match="images are far from 0") as warned:
        features.features(vit, np.float32(pixels))
    assert warned[0].filename == __file__


def test_a_folder_and_many_files_are_computed_in_batches(tmp_path, monkeypatch):
    """Two at a time; the last batch repeats the fifth image."""
    vit = tiny_vit.pretrained("tome:r=4", depth=1)
    pixels = noise(5, 20, 20)
    write_images(tmp_path, pixels)
    options = {"layers": np.array([0])}
    wanted = features.features(vit, pixels, **options)
    chex.assert_trees_all_equal(features.features(vit, tmp_path, layers=1), wanted)
    monkeypatch.setattr(features, "FILE_BATCH_SIZE", 2)
    sizes = set()
    extract = features._extract_features

    def counted(variables, images, *others):
        sizes.add(len(images))
        return extract(variables, images, *others)

    monkeypatch.setattr(features, "_extract_features", counted)
    for images in (str(tmp_path), sorted(tmp_path.iterdir())):
        found = features.features(vit, images, **options)
        chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert sizes == {2}


@pytest.mark.parametrize(
    "images, said",
    [
        ([], "images is empty"),
        ([pathlib.Path("a.png")], "a.png cannot be read (no known image format)"),
        (["."], "cannot be read (Is a directory)"),
        (".", "a.png cannot be read"),
        ([TENSOR], "images is torch.float32 [3, 20, 20, 3]"),
        (np.zeros((20, 20, 3), np.float32), "images is of shape (20, 20, 3)"),
    ],
)
def test_what_is_no_photograph_is_refused(tmp_path, monkeypatch, images, said):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.png").write_bytes(b"no image")
    with refused(said):
        features.features(tiny_vit.pretrained(depth=1), images)


def test_weights_on_the_device_outlive_a_trace_and_are_not_changed_behind_them():
    vit = tiny_vit.pretrained(tiny_vit.EVIT)
    variables = jax.tree.map(np.array, vit.variables)
    vit = vit.with_variables(variables)
    images = np.zeros((1, tiny_vit.SIDE, tiny_vit.SIDE, 3), np.uint8)
    traced = jax.jit(lambda scale: scale * features.features(vit, images).pooled)(1.0)
    chex.assert_trees_all_close(
        traced, features.features(vit, images).pooled, atol=1e-5
    )
    with pytest.raises(ValueError, match="read-only"):
        jax.tree.leaves(variables)[0][...] = 0


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_layer_is_what_a_shorter_model_ends_with():
    vit = tiny_vit.pretrained(arch=DINOV2, depth=2)
    images = tiny_vit.images(2)
    found = features.features(vit, images, layers=(1, 0))
    assert len(found.layers) == 2
    assert found.pooled.shape == (2, tiny_vit.WIDTH)
    for depth, layer in zip((2, 1), found.layers, strict=True):
        short = tiny_vit.model(arch=DINOV2, depth=depth)
        out = tiny_vit.compiled(short.apply)(vit.variables, images)
        chex.assert_shape(layer.patches, (2, 5, 5, tiny_vit.WIDTH))
        close(layer.patches.reshape(2, 25, -1), out.tokens[:, 3:])
        close(layer.prefix, out.tokens[:, :3])
        assert not layer.dropped.any()
    close(found.pooled, found.prefix[:, 0])
    for one, other in zip(found[1:4], found.layers[0], strict=True):
        close(one, other)


@pytest.fixture(scope="module")
def reduced():
    vit = tiny_vit.pretrained(PIECE, depth=2)
    return vit, tiny_vit.compiled(vit.model.apply)(vit.variables, tiny_vit.images(2))


@pytest.mark.parametrize("fill", ["nearest", "last"])
def test_after_a_reduction_every_patch_has_the_feature_of_its_token(reduced, fill):
    vit, out = reduced
    found = features.features(vit, tiny_vit.images(2), fill=fill, layers=[0, 1])
    source = np.asarray(tiny_vit.slots(out))
    assert 0 < (source == -1).sum() < source.size
    np.testing.assert_array_equal(found.dropped.reshape(2, 25), source == -1)
    norm = vit.variables["params"]["norm"]
    for image in range(2):
        values = out.tokens[image, 1:]
        steps = []
        normed = []
        for inputs, result in zip(out.reducer_inputs, out.results, strict=True):
            x = inputs.x[image]
            steps.append((x, result.slot_of_token[image]))
            normed.append((oracles.layer_norm(x, norm), result.slot_of_token[image]))
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
    """The model's own epsilon matters for small features."""
    vit = tiny_vit.pretrained(TOME, arch=Architecture(norm_eps=0.5), depth=2)
    found = features.features(
        vit, tiny_vit.images(2), layers=1, reshape=False, norm=False
    )
    (plain,) = found.layers
    params = vit.variables["params"]["norm"]
    for one, other in zip(plain[:2], (found.patches, found.prefix), strict=True):
        close(oracles.layer_norm(one, params, 0.5), other)
    chex.assert_shape(found.patches, (2, 25, tiny_vit.WIDTH))
    chex.assert_shape(found.dropped, (2, 25))


def test_a_pooled_vector_is_what_the_head_reads():
    arch = Architecture(class_token=False, pool="mean", final_norm=False, fc_norm=True)
    vit = tiny_vit.pretrained(TOME, arch=arch, depth=1, image_size=(12, 20))
    found = features.features(vit, tiny_vit.images(2, side=(12, 20)))
    chex.assert_shape(found.patches, (2, 3, 5, tiny_vit.WIDTH))
    chex.assert_shape(found.prefix, (2, 0, tiny_vit.WIDTH))
    mean = np.asarray(found.patches, float).mean(axis=(1, 2))
    close(found.pooled, oracles.layer_norm(mean, vit.variables["params"]["fc_norm"]))


@pytest.mark.parametrize(
    "option, value",
    [
        ("layers", 4),
        ("layers", [-1]),
        ("layers", [0.5]),
        ("images", np.zeros((1, 20, 20, 3), np.int32)),
        ("images", np.zeros((1, 20, 24, 3))),
    ],
)
def test_what_does_not_fit_is_refused(option, value):
    vit = Pretrained(tiny_vit.model(TOME), {"params": {}})
    with refused(option):
        features.features(vit, **{"images": tiny_vit.images(1), option: value})


@pytest.mark.slow
def test_the_example_of_the_docs_runs(tmp_path, monkeypatch, assets):
    deit_ti(monkeypatch, 4)
    weights = assets / "weights" / "deit_tiny_patch16_224.pth"
    (tmp_path / "deit_tiny_patch16_224-a1311bcf.pth").symlink_to(weights)
    (tmp_path / "imagepiece_jax").symlink_to(ROOT / "imagepiece_jax")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    space = {}
    code = text.split("```python\n")[1].partition("```")[0]
    exec(compile(code, "docs/features.md", "exec"), space)
    assert space["features"].shape == (2, 14, 14, 192)
    assert len(space["maps"].layers) == 4
    nearest = space["features"][1, space["row"], space["column"]]
    query = space["features"][0, 7, 7]
    cosine = nearest @ query / np.linalg.norm(nearest) / np.linalg.norm(query)
    assert cosine == pytest.approx(float(space["cosines"].max()), abs=1e-5)
