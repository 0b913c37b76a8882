"""Sizes in a direction of the keys: losses and gains of the logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from imagepiece_jax import load, normalize, optimize
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import size_direction
from imagepiece_jax.inference.optimize import uses_size_direction
from imagepiece_jax.models.attention import Attention
from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import oracles_peaks, tiny_vit
from tests.helpers.refused_calls import refused

TOME = "tome:counts=(16,11,9):prop_attn=True"


def results_of(method, model):
    """[results] of a method of Attention, of every block, by (variables, images)."""

    def run(variables, images):
        found = {}  # of a subclass, which calls Attention's, the last

        def noting(call, args, kwargs, context):
            result = call(*args, **kwargs)
            module = context.module
            if isinstance(module, Attention) and context.method_name == method:
                found[module.path] = result
            return result

        with nn.intercept_methods(noting):
            model.apply(variables, images)
        return [*found.values()]

    return run


def compiled_results(method, model, variables, images):
    return tiny_vit.compiled(results_of(method, model))(variables, images)


@pytest.fixture(scope="module")
def vit():
    return tiny_vit.pretrained(TOME)


@pytest.fixture(scope="module", autouse=True)
def moments_compiled_once():
    moments = functools.cache(size_direction.compile_moments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(size_direction, "compile_moments", moments)
        yield


def photographs(vit):
    """Two uint8 images of the model's size, of smooth random colors."""
    small = np.random.default_rng(3).integers(0, 256, (2, 4, 4, 3), np.uint8)
    size = (vit.image_size, vit.image_size)
    return np.stack([np.asarray(Image.fromarray(each).resize(size)) for each in small])


@pytest.fixture(scope="module")
def given(vit):
    """(directions, model, variables, images): the model without the directions."""
    images = photographs(vit)
    u = size_direction.find_directions(vit, images)
    model, variables = size_direction.fold_sizes(vit.model, vit.variables, u)
    return u, model, variables, normalize(images, vit.config.mean, vit.config.std)


def test_logits_lose_the_direction_and_gain_the_log_of_the_size(vit, given):
    """Against NumPy, in the first block that meets sizes; those before it are exact."""
    u, model, variables, images = given
    plain = compiled_results("project_heads", vit.model, vit.variables, images)
    folded = compiled_results("project_heads", model, variables, images)
    first = size_direction.sized_blocks(vit.model)[0]
    for name in ("query", "key"):
        before = getattr(plain[first - 1], name)
        np.testing.assert_array_equal(getattr(folded[first - 1], name), before)
    query, key, log_size = (
        np.asarray(getattr(plain[first], name), np.float64)
        for name in ("query", "key", "key_bias")
    )
    assert log_size.max() > 0.5
    axis = u[first].astype(np.float64)
    query = query - np.sum(query * axis, -1, keepdims=True) * axis
    key = key - np.sum(key * axis, -1, keepdims=True) * axis
    wanted = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(key.shape[-1])
    wanted = wanted + log_size[:, None, None, :]
    got = np.einsum("bqhd,bkhd->bhqk", folded[first].query, folded[first].key)
    assert folded[first].key_bias is None
    np.testing.assert_allclose(got / np.sqrt(key.shape[-1]), wanted, atol=2e-5)


def test_the_mean_query_gains_the_log_of_the_size():
    """It is 1 along the direction where all queries are. Block 1 meets sizes first."""
    vit = tiny_vit.pretrained("peaks:blocks=(0,1):keep_rate=0.6")
    images = photographs(vit)
    u = size_direction.find_directions(vit, images)
    images = normalize(images, vit.config.mean, vit.config.std)
    plain = compiled_results("project_heads", vit.model, vit.variables, images)[1]
    folded = size_direction.fold_sizes(vit.model, vit.variables, u)
    scores = compiled_results("token_scores", *folded, images)[1]["cls_and_mean_attn"]
    axis = u[1].astype(np.float64)
    sizes = np.exp(np.asarray(plain.key_bias, np.float64))
    assert np.ptp(sizes) > 0.5
    for image in range(2):
        both = (np.asarray(each[image], np.float64) for each in plain[:2])
        query, key = (x - np.sum(x * axis, -1, keepdims=True) * axis for x in both)
        want = oracles_peaks.scores("class_and_mean", query, key, sizes[image])
        np.testing.assert_allclose(scores[image], want[1:], rtol=1e-3, atol=1e-6)


def test_reducers_compare_keys_as_they_were(vit, given):
    """The mean over heads, with neither a direction given up nor sizes."""
    _, model, variables, images = given
    assert vit.model.plan[0].attention_reads == {"key"}
    plain = compiled_results("token_scores", vit.model, vit.variables, images)
    folded = compiled_results("token_scores", model, variables, images)
    assert len(plain) == vit.model.depth
    np.testing.assert_allclose(folded[0]["key"], plain[0]["key"], atol=1e-5)
    # Behind the first sizes, of the tokens that the block has got.
    second = compiled_results("project_heads", model, variables, images)[1]
    attention = vit.variables["params"]["blocks_1"]["attn"]["k"]
    x = np.asarray(second.score_inputs["input"], np.float64)
    key = x @ np.asarray(attention["kernel"], np.float64) + attention["bias"]
    key = key.reshape(*x.shape[:2], vit.model.config.num_heads, -1)
    np.testing.assert_allclose(folded[1]["key"], key.mean(axis=2)[:, 1:], atol=1e-5)


@pytest.mark.parametrize(
    "name", ["tome", "evit", "mctf", "grid_pooling", "token_learner"]
)
def test_sized_blocks_are_those_whose_attention_has_a_bias(name):
    assert name in METHODS
    model = tiny_vit.model(tiny_vit.changed(tiny_vit.small(name), prop_attn=True))
    variables = tiny_vit.shapes(model)
    images = jax.ShapeDtypeStruct((1, tiny_vit.SIDE, tiny_vit.SIDE, 3), jnp.float32)
    heads = jax.eval_shape(results_of("project_heads", model), variables, images)
    biased = [block for block, each in enumerate(heads) if each.key_bias is not None]
    sized = [*size_direction.sized_blocks(model)]
    assert sized == biased
    assert sized


def test_a_program_says_how_it_takes_sizes(vit):
    program = optimize(vit, 2, sizes="direction")
    assert "sizes by a direction" in program.summary()
    u = size_direction.find_directions(vit)
    model, variables = size_direction.fold_sizes(vit.model, vit.variables, u)
    images = photographs(vit)
    pixels = normalize(images, vit.config.mean, vit.config.std)
    wanted = tiny_vit.logits(model)(variables, pixels)
    np.testing.assert_allclose(program(images), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("reduction", "asked", "backend", "taken"),
    [
        (TOME, None, "cudnn", True),
        (TOME, None, "xla", False),
        (TOME, "bias", "cudnn", False),
        (TOME, "direction", "xla", True),
        (None, "direction", "xla", False),  # a dense model stays as it is
    ],
)
def test_a_direction_is_taken_by_fused_attention(reduction, asked, backend, taken):
    model = tiny_vit.model(reduction).with_execution(attention_impl=backend)
    assert uses_size_direction(model, asked) is taken


def test_what_turns_directions_keeps_the_bias():
    rotary = tiny_vit.pretrained(TOME, arch={"rotary": {}}, embed_dim=24)
    for vit in (rotary, tiny_vit.pretrained(f"{TOME}:metric=query")):
        assert not uses_size_direction(vit.model.with_execution(attention_impl="cudnn"))
        with refused("sizes"):
            optimize(vit, 2, sizes="direction")


@pytest.mark.parametrize("names", ["q", "k", "qk"])
def test_a_head_of_zeros_has_a_direction(vit, names):
    """Such as a head that was pruned: it uses none."""
    params = jax.tree.map(np.copy, vit.variables["params"])
    for name in names:
        for values in params["blocks_1"]["attn"][name].values():
            values[..., :10] = 0
    vit = vit.with_variables({"params": params})
    found = size_direction.find_directions(vit, photographs(vit))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


def test_weights_that_are_no_numbers_find_no_directions(vit):
    params = jax.tree.map(np.copy, vit.variables["params"])
    params["blocks_1"]["attn"]["k"]["kernel"][0, 0] = np.inf
    vit = vit.with_variables({"params": params})
    with pytest.raises(InputError, match="not finite"):
        size_direction.find_directions(vit)


def test_eight_photographs_come_with_the_package(vit):
    files = [*size_direction.PHOTOGRAPH_FOLDER.glob("*.jpg")]
    assert len(files) == 8
    credits = (size_direction.PHOTOGRAPH_FOLDER / "CREDITS.txt").read_text()
    assert all(file.name in credits for file in files)
    found = size_direction.find_directions(vit)
    assert found.shape[0] == vit.model.depth
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


@pytest.mark.slow
def test_deit_hardly_notices(assets):
    """KL of the dense model to itself, on photographs that did not find directions.

    The direction is given up in all blocks, without sizes.
    """
    vit = load(assets / "weights/deit_tiny_patch16_224.pth")
    files = sorted((assets / "data/nips2017_224_jpg/images").glob("*.jpg"))[1:8:2]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    images = normalize(pixels, vit.config.mean, vit.config.std)
    every = range(vit.model.depth)
    u = size_direction.find_directions(vit)
    model, variables = size_direction.fold_sizes(vit.model, vit.variables, u, every)
    dense = jax.nn.log_softmax(tiny_vit.logits(vit.model)(vit.variables, images))
    folded = jax.nn.log_softmax(tiny_vit.logits(model)(variables, images))
    assert 1e-6 < jnp.mean(jnp.sum(jnp.exp(dense) * (dense - folded), -1)) < 5e-4
