"""Feature maps of patches against maps worked out by hand."""

import pathlib
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

from imagepiece_jax.inference import features
from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import (
    Assignment,
    Masking,
    Mixing,
    ReducerInputs,
    start,
)
from tests.models import tiny
from tests.refused import refused
from tests.rounding import assert_close
from tests.runs import ROOT
from tests.shallow import deit_ti

# Compiled as a whole: one by one, its operations take longer.
feature_map = tiny.jit(features.feature_map, static_argnums=(1, 2, 3))
GRID = (2, 3)
TENSOR = types.SimpleNamespace(shape=(3, 20, 20, 3), dtype="torch.float32")  # of torch
CLASS = [100.0, -100.0]
# Six patches and what each of two channels has there.
PATCHES = [[1.0, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60]]


def state_of(patches):
    return start(jnp.asarray([[CLASS, *patches]], jnp.float32))


@tiny.jit
def outputs_of(state, *steps):
    """Outputs after `steps`: (result, what the network adds to every token then)."""
    results = []
    inputs = []
    for result, more in steps:
        inputs.append(ReducerInputs(state.x[:, 1:], state.size[:, 1:]))
        results.append(result)
        state = moves.apply(state, result)
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
    second = slots(0, 1, 2, 0, 3)
    outputs = outputs_of(state_of(PATCHES), (first, 0), (second, 0))
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
    second = slots(0, 1, 2, -1, 3)
    outputs = outputs_of(state_of(PATCHES), (first, 0.5), (second, 0.25))
    expected = [[1.75, lost[0], 3.75], [4.75, lost[1], 6.75]]
    assert first_channel(feature_map(outputs, GRID, fill)) == expected


def test_a_dropped_patch_follows_the_token_nearest_to_it_the_first_of_equals():
    """0 is like 1, which is dropped later, then like 3; 5 is like 4, merged with 2."""
    degrees = np.radians([0, 10, 90, 30, 160, 155])
    patches = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    first = slots(-1, 0, 1, 2, 1, -1)
    second = slots(-1, 0, 1)
    outputs = outputs_of(state_of(patches), (first, 0), (second, 0))
    features = feature_map(outputs, GRID)[0].reshape(6, 2)
    merged = (patches[2] + patches[4]) / 2
    kept = patches[3]
    expected = [kept, kept, merged, kept, merged, merged]
    assert_close(features, expected, units=8)
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
    mix = Mixing(matrix)
    outputs = outputs_of(state_of(PATCHES), (drop, 0), (mix, 0))
    got = first_channel(feature_map(outputs, GRID, "last"))
    low = 1 / 2 + 3 / 4 + 4 / 4
    high = 5 / 2 + 6 / 2
    assert got == [[low, 2, low], [low, high, high]]


@pytest.mark.parametrize(
    "options, state, steps, field, value",
    [
        ({"fill": "mean"}, {}, {}, "fill", "mean"),
        ({"fill": "class"}, {"num_prefix": 0}, {}, "fill", "class"),
        ({}, {"mask": jnp.ones((1, 6))}, {}, "outputs", None),
        ({}, {}, {"results": (Masking(np.ones((1, 6))),)}, "outputs", None),
    ],
)
def test_impossible_maps_are_refused(options, state, steps, field, value):
    """Such as those of masked training."""
    outputs = outputs_of(state_of(PATCHES))
    if steps:
        inputs = ReducerInputs(outputs.state.x[:, 1:], outputs.state.size[:, 1:])
        outputs = outputs.replace(reducer_inputs=(inputs,), **steps)
    outputs = outputs.replace(state=outputs.state.replace(**state))
    text = "outputs come from masked training" if steps else ""
    with refused(field, text):
        features.feature_map(outputs, **{"grid": GRID} | options)


def test_photographs_are_taken_as_a_predictor_takes_them(tmp_path):
    """Paths, bytes and PIL images of any size, one or several, turned and cropped."""
    vit = tiny.pretrained(depth=1).with_preprocessing(crop=0.8)
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 44, 3), np.uint8)
    photographs = [Image.fromarray(image) for image in noise]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    photographs[0].save(tmp_path / "turned.png", exif=exif)
    turned = noise[0].swapaxes(0, 1)[:, ::-1]
    pixels = np.stack([vit.preprocessing(turned), vit.preprocessing(noise[1])])
    wanted = features.features(vit, pixels).patches
    path = tmp_path / "turned.png"
    for several in ([path, photographs[1]], iter([path, noise[1]])):
        found = features.features(vit, several).patches
        np.testing.assert_array_equal(found, wanted)
    for one in (photographs[1], noise[1], jnp.asarray(noise[1])):
        found = features.features(vit, one).patches
        np.testing.assert_allclose(found, wanted[1:], rtol=1e-5, atol=1e-5)
    with pytest.warns(UserWarning, match="images are far from 0") as warned:
        features.features(vit, np.float32(pixels))
    assert warned[0].filename == __file__


@pytest.mark.parametrize("block", [99, -1, 0.5])
def test_layers_are_blocks_of_the_model(block):
    with refused("layers", block):
        features.features(tiny.pretrained(), tiny.images(1), layers=[block])


def test_a_folder_and_many_files_are_computed_in_batches(tmp_path, monkeypatch):
    """Two at a time, of which the last has one image of the five twice."""
    vit = tiny.pretrained("tome:r=4", depth=1)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    options = {"layers": np.array([0])}
    wanted = features.features(vit, pixels, **options)
    whole = features.features(vit, tmp_path, layers=1)
    chex.assert_trees_all_equal(whole, wanted)
    monkeypatch.setattr(features, "BATCH", 2)
    sizes = set()
    extract = features._extract

    def counted(variables, images, *others):
        sizes.add(len(images))
        return extract(variables, images, *others)

    monkeypatch.setattr(features, "_extract", counted)
    for images in (str(tmp_path), sorted(tmp_path.iterdir())):
        found = features.features(vit, images, **options)
        chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert sizes == {2}


@pytest.mark.parametrize(
    "images, said",
    [
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
        features.features(tiny.pretrained(depth=1), images)


def test_weights_on_the_device_outlive_a_trace_and_are_not_changed_behind_them():
    vit = tiny.pretrained(tiny.EVIT)
    variables = jax.tree.map(np.array, vit.variables)
    vit = vit.with_variables(variables)
    images = np.zeros((1, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    traced = jax.jit(lambda scale: scale * features.features(vit, images).pooled)(1.0)
    chex.assert_trees_all_close(
        traced, features.features(vit, images).pooled, atol=1e-5
    )
    with pytest.raises(ValueError, match="read-only"):
        jax.tree.leaves(variables)[0][...] = 0


@pytest.mark.slow
def test_the_example_of_the_docs_runs(tmp_path, monkeypatch, assets):
    """With four blocks of the public weights, in the folder of the reader."""
    deit_ti(monkeypatch, 4)
    weights = assets / "weights" / "deit_tiny_patch16_224.pth"
    (tmp_path / weights.name).symlink_to(weights)
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


def test_no_images_are_refused():
    with refused("images is empty"):
        features.features(tiny.pretrained(), [])
