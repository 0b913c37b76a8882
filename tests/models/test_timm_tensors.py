import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.models import resize_positions, timm_tensors
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close


def tiny_variables(width=6, tokens=9, classes=5, stem="patch", seed=0):
    size = {"embed_dim": width, "num_heads": 1, "depth": 2, "num_classes": classes}
    side = 4 * math.isqrt(tokens)
    model = tiny_vit.model(image_size=side, stem=stem, **size)
    return tiny_vit.fill(tiny_vit.shapes(model), seed)


def add_reducers(tree):
    """Add parameters of a method in blocks 1 and 10: a linear layer and a scalar."""
    params = dict(tree["params"])
    for block in (1, 10):
        layer = {"kernel": np.full((6, 3), block, np.float32)}
        params[f"reducer_{block}"] = {"Dense_0": layer, "scale": np.float32(block)}
    return {**tree, "params": params}


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_round_trip(stem):
    tree = add_reducers(tiny_variables(stem=stem))
    state_dict = timm_tensors.to_timm(tree)
    assert all(value.flags.c_contiguous for value in state_dict.values())
    chex.assert_shape(state_dict["reducer.10.Dense.0.weight"], (3, 6))
    assert ("patch_embed.norm.0.running_var" in state_dict) == (stem == "conv")
    chex.assert_trees_all_equal(timm_tensors.from_timm(state_dict, tree), tree)


def test_fresh_names_whole_parts_only():
    """blocks_1 is not blocks_10, and norm is not norm1."""
    state_dict = timm_tensors.to_timm(add_reducers(tiny_variables()))
    like = add_reducers(tiny_variables(seed=3))
    fresh = ("reducer_1", "norm", "blocks_1/attn/q")
    params = timm_tensors.from_timm(state_dict, like, fresh)["params"]
    expected = add_reducers(tiny_variables())["params"]
    drawn = like["params"]
    expected |= {part: drawn[part] for part in ("reducer_1", "norm")}
    expected["blocks_1"]["attn"]["q"] = drawn["blocks_1"]["attn"]["q"]
    chex.assert_trees_all_equal(params, expected)
    without = {k: v for k, v in state_dict.items() if not k.startswith("reducer.1.")}
    timm_tensors.from_timm(without, like, ("reducer_1",))
    with refused("tensor reducer.10.Dense.0.weight", "is missing"):
        without.pop("reducer.10.Dense.0.weight")
        timm_tensors.from_timm(without, like, ("reducer_1",))


@pytest.mark.parametrize("old, new", [(14, (7, 7)), (4, (6, 6)), (4, (2, 8))])
def test_pos_embed_is_resized_like_pillow(old, new):
    """Pillow's bicubic is an independent implementation of the same kernel."""
    positions = np.random.default_rng(0).normal(size=(1, 1 + old * old, 6))
    tensors = {"pos_embed": positions.astype(np.float32)}
    size = tuple(side * tiny_vit.PATCH for side in new)
    config = tiny_vit.model(embed_dim=6, num_heads=1, image_size=size).config
    fitted = resize_positions.fit_positions(tensors, config, old * tiny_vit.PATCH)
    positions, resized = tensors["pos_embed"], fitted["pos_embed"]
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])
    for channel in range(6):
        grid = Image.fromarray(positions[0, 1:, channel].reshape(old, old))
        grid = np.asarray(grid.resize(new[::-1], Image.Resampling.BICUBIC))
        assert_close(resized[0, 1:, channel], grid.ravel())


def test_types_follow_the_model():
    tree = tiny_variables()
    state_dict = timm_tensors.to_timm(tree)
    state_dict = {name: v.astype(jnp.bfloat16) for name, v in state_dict.items()}
    rounded = jax.tree.map(lambda v: v.astype(jnp.bfloat16).astype(np.float32), tree)
    chex.assert_trees_all_equal(timm_tensors.from_timm(state_dict, tree), rounded)


def changed(name, value):
    """The state dict of `tiny_variables()` with a tensor changed (None: removed)."""
    state_dict = timm_tensors.to_timm(tiny_variables()) | {name: value}
    return {name: value for name, value in state_dict.items() if value is not None}


@pytest.mark.parametrize(
    "tensor, value, text",
    [
        ("head.bias", np.zeros(7), "has shape (7,), head/bias needs (5,)"),
        ("blocks.1.attn.qkv.weight", np.zeros((12, 6)), "kernel needs (18, 6)"),
        ("blocks.0.norm1.weight", None, "is missing, blocks_0/norm1/scale needs it"),
        ("dist_token", np.zeros((1, 1, 6)), "of shape (1, 1, 6) is left over"),
        ("pos_embed", np.zeros((1, 13, 6)), "pos_embed needs (1, 10, 6)"),
        ("norm.bias", np.zeros(6, np.int8), "is of type int8, norm/bias needs floats"),
        ("norm.bias", np.full(6, 1e39), "is not finite in float32"),
    ],
)
def test_a_misfitting_tensor_is_named(tensor, value, text):
    with refused(f"tensor {tensor}", text):
        timm_tensors.from_timm(changed(tensor, value), tiny_variables())


def remedy(state_dict, like=None, fresh=()):
    with pytest.raises(timm_tensors.StateDictMismatch) as caught:
        timm_tensors.from_timm(state_dict, like or tiny_variables(), fresh)
    return caught.value.fresh_parts


def test_remedy_names_every_differing_part():
    state_dict = timm_tensors.to_timm(tiny_variables(classes=7))
    like = add_reducers(tiny_variables(stem="conv"))
    parts = ("reducer_1", "head", "patch_embed", "reducer")
    assert remedy(state_dict, like, ("reducer_1",)) == parts
    timm_tensors.from_timm(state_dict, like, parts)
    conv = timm_tensors.to_timm(tiny_variables(stem="conv"))
    assert remedy(conv) == ("patch_embed",)
    assert remedy(changed("pos_embed", np.zeros((1, 13, 6)))) == ("pos_embed",)
    assert remedy(changed("blocks.0.norm1.weight", None)) == ()
