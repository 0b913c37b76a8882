import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.inference import features
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import (
    Assignment,
    Mixing,
    ReducerInputs,
    initial_state,
)
from tests.helpers import oracles, tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

DINOV2 = Architecture(registers=2, prefix_positions=False, layer_scale=True)
TOME = "tome:r=4"  # 25 image tokens, 21, 17, 13
# Drops 5 tokens of 25 at block 1; merges some at block 0.
PIECE = tiny_vit.with_fields(tiny_vit.IMAGEPIECE, merge_blocks=(0,), prune_blocks=(1,))
# Compiled as a whole: one by one, its operations take longer.
feature_map = tiny_vit.jit(features.feature_map, static_argnums=(1, 2, 3))
GRID = (2, 3)
CLASS = [100.0, -100.0]
# Six patches with two channels.
PATCHES = [[1.0, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]


def make_state(patches):
    return initial_state(jnp.asarray([[CLASS, *patches]], jnp.float32))


@tiny_vit.jit
def make_outputs(state, *steps):
    """Outputs after `steps`, pairs of a result and a number added to every token."""
    results = []
    inputs = []
    for result, more in steps:
        inputs.append(ReducerInputs(state.x[:, 1:], state.size[:, 1:]))
        results.append(result)
        state = moves.apply_result(state, result)
        state = state.replace(x=state.x + more)
    return Outputs(None, None, state.x, state, tuple(results), tuple(inputs))


def assign(*dest, **options):
    n_out = max(dest) + 1
    return Assignment(jnp.asarray([dest], jnp.int32), n_out=n_out, **options)


def first_channel(features):
    assert features.shape == (1, *GRID, 2)
    return np.asarray(features[0, :, :, 0]).tolist()


def test_merged_patches_have_their_mean_and_fused_ones_their_token():
    """1 and 3 become 2; then that token of two patches and 5 become (2 * 2 + 5) / 3."""
    first = assign(0, 1, 0, 2, 3, 4)
    outputs = make_outputs(make_state(PATCHES), (first, 0), (assign(0, 1, 2, 0, 3), 0))
    assert first_channel(feature_map(outputs, GRID)) == [[3, 2, 3], [4, 3, 6]]
    # EViT's last slot is a weighted sum, here a quarter of 2 and of 6.
    weight = jnp.asarray([[1, 0.25, 1, 1, 1, 0.25]])
    result = assign(0, 4, 1, 2, 3, 4, weight=weight, mean=False)
    outputs = make_outputs(make_state(PATCHES), (result, 0))
    assert first_channel(feature_map(outputs, GRID)) == [[1, 2, 3], [4, 5, 2]]


def test_dropped_patches_have_their_last_feature():
    """Patch 1 leaves at once, patch 4 after 0.5 was added; then 0.25 is added."""
    first = assign(0, -1, 1, 2, 3, 4)
    second = assign(0, 1, 2, -1, 3)
    outputs = make_outputs(make_state(PATCHES), (first, 0.5), (second, 0.25))
    expected = [[1.75, 2, 3.75], [4.75, 5.5, 6.75]]
    assert first_channel(feature_map(outputs, GRID, "last")) == expected


def test_a_dropped_patch_follows_its_nearest_token():
    """0 follows 1, then 3; 5 follows 4, merged with 2. The first token wins ties."""
    degrees = np.radians([0, 10, 90, 30, 160, 155])
    patches = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    steps = (assign(-1, 0, 1, 2, 1, -1), 0), (assign(-1, 0, 1), 0)
    outputs = make_outputs(make_state(patches), *steps)
    features = feature_map(outputs, GRID)[0].reshape(6, 2)
    merged = (patches[2] + patches[4]) / 2
    kept = patches[3]
    assert_close(features, [kept, kept, merged, kept, merged, merged], units=8)
    patches = [[1.0, 0], [2, 2], [3, 3], [0, 4], [1, 1], [5, 5]]
    outputs = make_outputs(make_state(patches), (assign(0, 1, 2, 3, -1, -1), 0))
    features = feature_map(outputs, GRID, "nearest")[0].reshape(6, 2)
    assert features[4:].tolist() == [[2, 2], [2, 2]]


def test_a_patch_has_the_weighted_mean_of_learned_tokens():
    """Tokens are 12 and 24; patches' shares are 1:0, 1:1, 1:3, 0:1, 3:1 and none."""
    matrix = jnp.asarray([[[0.2, 0.1, 0.1, 0, 0.6, 0], [0, 0.1, 0.3, 0.4, 0.2, 0]]])
    outputs = make_outputs(make_state(PATCHES), (Mixing(matrix), 0))
    learned = jnp.asarray([[CLASS, [12.0, 1], [24.0, 2]]])
    outputs = outputs.replace(state=outputs.state.replace(x=learned))
    values = feature_map(outputs, GRID)[0, ..., 0]
    assert_close(values, [[12, 18, 21], [24, 15, 0]], units=8)
    # Patch 2 was dropped before; tokens are 2.25 = 1/2 + 3/4 + 4/4 and 5.5.
    matrix = jnp.asarray([[[0.5, 0.25, 0.25, 0, 0], [0, 0, 0, 0.5, 0.5]]])
    drop = assign(0, -1, 1, 2, 3, 4)
    outputs = make_outputs(make_state(PATCHES), (drop, 0), (Mixing(matrix), 0))
    values = first_channel(feature_map(outputs, GRID, "last"))
    assert values == [[2.25, 2, 2.25], [2.25, 5.5, 5.5]]


def test_outputs_of_masked_training_are_refused():
    outputs = make_outputs(make_state(PATCHES))
    state = outputs.state.replace(mask=jnp.ones((1, 6)))
    with refused("outputs come from masked training"):
        features.feature_map(outputs.replace(state=state), GRID)


def test_photographs_are_prepared_like_a_predictors(tmp_path):
    vit = tiny_vit.pretrained(depth=1).with_preprocessing(crop=0.8)
    arrays = noise(2, 30, 44)
    path, _ = write_images(tmp_path, arrays)
    pixels = np.stack([*map(vit.preprocessing, arrays)])
    expected = features.features(vit, pixels).patches
    for images in (iter([path, Image.fromarray(arrays[1])]), tmp_path):
        patches = features.features(vit, images).patches
        np.testing.assert_array_equal(patches, expected)
    patches = features.features(vit, jnp.asarray(arrays[1])).patches
    np.testing.assert_allclose(patches, expected[1:], rtol=1e-5, atol=1e-5)
    with pytest.warns(UserWarning, match="images are far from 0") as warned:
        features.features(vit, np.float32(pixels))
    assert warned[0].filename == __file__


def test_a_folder_and_many_files_are_computed_in_batches(tmp_path, monkeypatch):
    """Batches have two images; the last one repeats the fifth image."""
    vit = tiny_vit.pretrained("tome:r=4", depth=1)
    pixels = noise(5, 20, 20)
    write_images(tmp_path, pixels)
    options = {"layers": np.array([0])}
    expected = features.features(vit, pixels, **options)
    chex.assert_trees_all_equal(features.features(vit, tmp_path, layers=1), expected)
    monkeypatch.setattr(features, "FILE_BATCH_SIZE", 2)
    sizes = set()
    extract = features._extract_features

    def note_size(variables, images, *others):
        sizes.add(len(images))
        return extract(variables, images, *others)

    monkeypatch.setattr(features, "_extract_features", note_size)
    for images in (str(tmp_path), sorted(tmp_path.iterdir())):
        maps = features.features(vit, images, **options)
        chex.assert_trees_all_close(maps, expected, rtol=1e-4, atol=1e-5)
    assert sizes == {2}


def test_device_weights_outlive_a_trace_and_become_read_only():
    vit = tiny_vit.pretrained(tiny_vit.EVIT)
    variables = jax.tree.map(np.array, vit.variables)
    vit = vit.with_variables(variables)
    images = np.zeros((1, tiny_vit.SIDE, tiny_vit.SIDE, 3), np.uint8)
    traced = jax.jit(lambda scale: scale * features.features(vit, images).pooled)(1.0)
    expected = features.features(vit, images).pooled
    chex.assert_trees_all_close(traced, expected, atol=1e-5)
    with pytest.raises(ValueError, match="read-only"):
        jax.tree.leaves(variables)[0][...] = 0


def assert_near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_equals_a_shorter_models_outputs():
    vit = tiny_vit.pretrained(arch=DINOV2, depth=2)
    images = tiny_vit.images(2)
    maps = features.features(vit, images, layers=(1, 0))
    assert len(maps.layers) == 2
    assert maps.pooled.shape == (2, tiny_vit.WIDTH)
    for depth, layer in zip((2, 1), maps.layers, strict=True):
        short = tiny_vit.model(arch=DINOV2, depth=depth)
        out = tiny_vit.compiled(short.apply)(vit.variables, images)
        chex.assert_shape(layer.patches, (2, 5, 5, tiny_vit.WIDTH))
        assert_near(layer.patches.reshape(2, 25, -1), out.tokens[:, 3:])
        assert_near(layer.prefix, out.tokens[:, :3])
        assert not layer.dropped.any()
    assert_near(maps.pooled, maps.prefix[:, 0])
    for array, layer_array in zip(maps[1:4], maps.layers[0], strict=True):
        assert_near(array, layer_array)


@pytest.fixture(scope="module")
def reduced():
    vit = tiny_vit.pretrained(PIECE, depth=2)
    return vit, tiny_vit.compiled(vit.model.apply)(vit.variables, tiny_vit.images(2))


@pytest.mark.parametrize("fill", ["nearest", "last"])
def test_every_patch_has_its_tokens_feature(reduced, fill):
    vit, out = reduced
    maps = features.features(vit, tiny_vit.images(2), fill=fill, layers=[0, 1])
    slot_of_patch = np.asarray(tiny_vit.final_slots(out))
    assert 0 < (slot_of_patch == -1).sum() < slot_of_patch.size
    np.testing.assert_array_equal(maps.dropped.reshape(2, 25), slot_of_patch == -1)
    norm = vit.variables["params"]["norm"]
    for image in range(2):
        values = out.tokens[image, 1:]
        steps = []
        for inputs, result in zip(out.reducer_inputs, out.results, strict=True):
            x = inputs.x[image]
            x = oracles.layer_norm(x, norm) if fill == "last" else x
            steps.append((x, result.slot_of_token[image]))
        expected = oracles.patch_values(values, steps, fill)
        assert_near(maps.patches[image].reshape(25, -1), expected)
    early, late = maps.layers
    assert not early.dropped.any()  # merged patches are not dropped
    np.testing.assert_array_equal(late.dropped, maps.dropped)
    assert_near(late.patches, maps.patches)
    assert_near(late.prefix, maps.prefix)


def test_layers_without_norm_are_the_residual_stream():
    """The model's own epsilon matters for small features."""
    vit = tiny_vit.pretrained(TOME, arch=Architecture(norm_eps=0.5), depth=2)
    maps = features.features(vit, tiny_vit.images(2), layers=1, norm=False)
    (plain,) = maps.layers
    params = vit.variables["params"]["norm"]
    for array, normed_array in zip(plain[:2], (maps.patches, maps.prefix), strict=True):
        assert_near(oracles.layer_norm(array, params, 0.5), normed_array)


def test_the_pooled_vector_is_the_heads_input():
    arch = Architecture(class_token=False, pool="mean", final_norm=False, fc_norm=True)
    vit = tiny_vit.pretrained(TOME, arch=arch, depth=1, image_size=(12, 20))
    maps = features.features(vit, tiny_vit.images(2, side=(12, 20)))
    chex.assert_shape(maps.patches, (2, 3, 5, tiny_vit.WIDTH))
    chex.assert_shape(maps.prefix, (2, 0, tiny_vit.WIDTH))
    mean = np.asarray(maps.patches, float).mean(axis=(1, 2))
    fc_norm = vit.variables["params"]["fc_norm"]
    assert_near(maps.pooled, oracles.layer_norm(mean, fc_norm))


def test_misfitting_arguments_are_refused():
    vit = tiny_vit.pretrained(TOME)
    images = tiny_vit.images(1)
    for option, value in (("layers", 4), ("layers", [-1]), ("images", images[:, :4])):
        with refused(option):
            features.features(vit, **{"images": images, option: value})
