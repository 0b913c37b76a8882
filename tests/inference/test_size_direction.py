import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from imagepiece_jax import normalize, optimize
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import size_direction
from imagepiece_jax.inference.optimize import uses_size_direction
from imagepiece_jax.models.attention import Attention
from tests.helpers import oracles_peaks, tiny_vit
from tests.helpers.picture_files import noise
from tests.helpers.refused_calls import refused

TOME = "tome:counts=(16,11,9):prop_attn=True"


def method_results(method, model):
    """A function (variables, images) -> all blocks' results of Attention's method."""

    def run(variables, images):
        results = {}  # a subclass's result replaces Attention's

        def note_result(call, args, kwargs, context):
            result = call(*args, **kwargs)
            module = context.module
            if isinstance(module, Attention) and context.method_name == method:
                results[module.path] = result
            return result

        with nn.intercept_methods(note_result):
            model.apply(variables, images)
        return [*results.values()]

    return run


def run_method_results(method, model, variables, images):
    return tiny_vit.compiled(method_results(method, model))(variables, images)


@pytest.fixture(scope="module")
def vit():
    return tiny_vit.pretrained(TOME)


def photographs(vit):
    """Two uint8 images of the model's size, of smooth random colors."""
    size = (vit.image_size, vit.image_size)
    pictures = [Image.fromarray(field).resize(size) for field in noise(2, 4, 4)]
    return np.stack([*map(np.asarray, pictures)])


@pytest.fixture(scope="module")
def folded_model(vit):
    """(directions, model, variables, images); the model gives the directions up."""
    images = photographs(vit)
    u = size_direction.find_directions(vit)
    model, variables = size_direction.fold_sizes(vit.model, vit.variables, u)
    return u, model, variables, normalize(images, vit.config.mean, vit.config.std)


def test_logits_lose_the_direction_and_gain_the_log_size(vit, folded_model):
    """Against NumPy, in the first block with sizes; earlier blocks are exact."""
    u, model, variables, images = folded_model
    plain = run_method_results("project_heads", vit.model, vit.variables, images)
    folded = run_method_results("project_heads", model, variables, images)
    first = size_direction.sized_blocks(vit.model)[0]
    for name in ("query", "key"):
        before = getattr(plain[first - 1], name)
        np.testing.assert_array_equal(getattr(folded[first - 1], name), before)
    heads = plain[first]
    arrays = (heads.query, heads.key, heads.key_bias)
    query, key, log_size = (np.asarray(array, np.float64) for array in arrays)
    assert log_size.max() > 0.5
    axis = u[first].astype(np.float64)
    query = query - np.sum(query * axis, -1, keepdims=True) * axis
    key = key - np.sum(key * axis, -1, keepdims=True) * axis
    expected = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(key.shape[-1])
    expected = expected + log_size[:, None, None, :]
    logits = np.einsum("bqhd,bkhd->bhqk", folded[first].query, folded[first].key)
    assert folded[first].key_bias is None
    np.testing.assert_allclose(logits / np.sqrt(key.shape[-1]), expected, atol=2e-5)


def test_the_mean_query_gains_the_log_size():
    """It is 1 along the direction, like all queries. Block 1 first has sizes."""
    vit = tiny_vit.pretrained("peaks:blocks=(0,1):keep_rate=0.6")
    images = photographs(vit)
    u = size_direction.find_directions(vit)
    images = normalize(images, vit.config.mean, vit.config.std)
    plain = run_method_results("project_heads", vit.model, vit.variables, images)[1]
    folded = size_direction.fold_sizes(vit.model, vit.variables, u)
    scores = run_method_results("token_scores", *folded, images)[1]["cls_and_mean_attn"]
    axis = u[1].astype(np.float64)
    sizes = np.exp(np.asarray(plain.key_bias, np.float64))
    assert np.ptp(sizes) > 0.5
    for image in range(2):
        arrays = (np.asarray(array[image], np.float64) for array in plain[:2])
        query, key = (x - np.sum(x * axis, -1, keepdims=True) * axis for x in arrays)
        expected = oracles_peaks.scores("class_and_mean", query, key, sizes[image])
        np.testing.assert_allclose(scores[image], expected[1:], rtol=1e-3, atol=1e-6)


def test_reducers_compare_the_original_keys(vit, folded_model):
    """The mean over heads, with the direction and without sizes."""
    _, model, variables, images = folded_model
    assert vit.model.plan[0].attention_reads == {"key"}
    plain = run_method_results("token_scores", vit.model, vit.variables, images)
    folded = run_method_results("token_scores", model, variables, images)
    assert len(plain) == vit.model.depth
    np.testing.assert_allclose(folded[0]["key"], plain[0]["key"], atol=1e-5)
    # After the first sizes, from the block's own tokens.
    second = run_method_results("project_heads", model, variables, images)[1]
    attention = vit.variables["params"]["blocks_1"]["attn"]["k"]
    x = np.asarray(second.score_inputs["input"], np.float64)
    key = x @ np.asarray(attention["kernel"], np.float64) + attention["bias"]
    key = key.reshape(*x.shape[:2], vit.model.config.num_heads, -1)
    np.testing.assert_allclose(folded[1]["key"], key.mean(axis=2)[:, 1:], atol=1e-5)


@pytest.mark.parametrize("name", ["tome", "evit", "grid_pooling", "token_learner"])
def test_sized_blocks_have_an_attention_bias(name):
    reduction = tiny_vit.with_fields(tiny_vit.small_reduction(name), prop_attn=True)
    model = tiny_vit.model(reduction)
    variables = tiny_vit.shapes(model)
    images = jax.ShapeDtypeStruct((1, tiny_vit.SIDE, tiny_vit.SIDE, 3), jnp.float32)
    heads = jax.eval_shape(method_results("project_heads", model), variables, images)
    biased = [block for block, head in enumerate(heads) if head.key_bias is not None]
    sized = [*size_direction.sized_blocks(model)]
    assert sized == biased
    assert sized


def test_a_program_computes_sizes_by_a_direction(vit, folded_model):
    program = optimize(vit, 2, sizes="direction")
    assert "sizes by a direction" in repr(program)
    _, model, variables, images = folded_model
    expected = tiny_vit.logits(model)(variables, images)
    np.testing.assert_allclose(program(photographs(vit)), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("reduction", "requested", "backend", "is_used"),
    [
        (TOME, None, "cudnn", True),
        (TOME, None, "xla", False),
        (TOME, "bias", "cudnn", False),
        (TOME, "direction", "xla", True),
        (None, "direction", "xla", False),  # a dense model stays as it is
    ],
)
def test_fused_attention_uses_a_direction(reduction, requested, backend, is_used):
    model = tiny_vit.model(reduction).with_execution(attention_impl=backend)
    assert uses_size_direction(model, requested) is is_used


def test_rotated_or_compared_queries_keep_the_bias():
    rotary = tiny_vit.pretrained(TOME, arch={"rotary": {}}, embed_dim=24)
    for vit in (rotary, tiny_vit.pretrained(f"{TOME}:metric=query")):
        assert not uses_size_direction(vit.model.with_execution(attention_impl="cudnn"))
        with refused("sizes"):
            optimize(vit, 2, sizes="direction")


def test_a_head_of_zeros_has_a_direction(vit):
    """A pruned head uses no direction."""
    params = jax.tree.map(np.copy, vit.variables["params"])
    for values in params["blocks_1"]["attn"]["q"].values():
        values[..., :10] = 0
    vit = vit.with_variables({"params": params})
    directions = size_direction.find_directions(vit)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-6)
    params["blocks_1"]["attn"]["k"]["kernel"][0, 0] = np.inf
    vit = vit.with_variables({"params": params})
    with pytest.raises(InputError, match="not finite"):
        size_direction.find_directions(vit)
