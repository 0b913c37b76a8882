"""Conversion of public weights: layout, types, and errors for what does not fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import convert
from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.models.positions import Positions
from imagepiece_jax.pretrained import load
from tests.models import tiny
from tests.rounding import assert_close


def variables(width=6, depth=2, patch=4, tokens=9, classes=5, stem="patch", seed=0):
    """A variables tree as the vision transformer makes it, of random numbers."""
    linear = {"fc1": (width, 4 * width), "fc2": (4 * width, width)}
    linear |= {name: (width, width) for name in ("q", "k", "v", "proj")}
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + tokens, width)}
    shapes |= {"norm/scale": (width,), "norm/bias": (width,)}
    shapes |= {"head/kernel": (width, classes), "head/bias": (classes,)}
    stats = {}
    if stem == "conv":
        shapes["patch_embed/conv_0/kernel"] = (3, 3, 3, width)
        shapes |= {f"patch_embed/norm_0/{leaf}": (width,) for leaf in ("scale", "bias")}
        stats |= {f"patch_embed/norm_0/{leaf}": (width,) for leaf in ("mean", "var")}
        shapes["patch_embed/proj/kernel"] = (1, 1, width, width)
    else:
        shapes["patch_embed/proj/kernel"] = (patch, patch, 3, width)
    shapes["patch_embed/proj/bias"] = (width,)
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {
                f"blocks_{i}/{norm}/{leaf}": (width,) for leaf in ("scale", "bias")
            }
        for name, shape in linear.items():
            module = f"blocks_{i}/{'mlp' if name[:2] == 'fc' else 'attn'}/{name}"
            shapes |= {f"{module}/kernel": shape, f"{module}/bias": shape[1:]}
    rng = np.random.default_rng(seed)
    tree = {
        name: {p: rng.normal(size=s).astype(np.float32) for p, s in part.items()}
        for name, part in (("params", shapes), ("batch_stats", stats))
        if part
    }
    return {k: traverse_util.unflatten_dict(v, sep="/") for k, v in tree.items()}


def with_reducers(tree):
    """Adds a method's parameters in blocks 1 and 10: a linear layer and a scalar."""
    params = dict(tree["params"])
    for block in (1, 10):
        layer = {"kernel": np.full((6, 3), block, np.float32)}
        params[f"reducer_{block}"] = {"Dense_0": layer, "scale": np.float32(block)}
    return {**tree, "params": params}


def test_layout_against_pytorch_definitions():
    """Linear is [out, in], convolution OIHW, qkv stacked; names as timm writes them."""
    state_dict = convert.to_timm(variables())
    rng = np.random.default_rng(1)
    state_dict = {k: rng.normal(size=v.shape) for k, v in state_dict.items()}
    like = jax.eval_shape(lambda: variables())
    params = convert.from_timm(state_dict, like)["params"]
    x = rng.normal(size=6)
    attention = params["blocks_1"]["attn"]
    qkv = (
        state_dict["blocks.1.attn.qkv.weight"] @ x
        + state_dict["blocks.1.attn.qkv.bias"]
    )
    for i, name in enumerate("qkv"):
        found = x @ attention[name]["kernel"] + attention[name]["bias"]
        np.testing.assert_allclose(found, qkv[6 * i : 6 * i + 6], rtol=1e-5, atol=1e-5)
    for name in ("fc1", "fc2"):
        weight = state_dict[f"blocks.0.mlp.{name}.weight"]
        assert weight.shape == ((24, 6) if name == "fc1" else (6, 24))
        kernel = params["blocks_0"]["mlp"][name]["kernel"]
        np.testing.assert_array_equal(kernel, weight.T.astype(np.float32))
    kernel = params["patch_embed"]["proj"]["kernel"]
    weight = state_dict["patch_embed.proj.weight"]
    for y, x, color, out in np.ndindex(4, 4, 3, 6):
        assert kernel[y, x, color, out] == np.float32(weight[out, color, y, x])
    for ours, name in (("norm", "norm"), ("blocks_1/norm2", "blocks.1.norm2")):
        found = traverse_util.flatten_dict(params, sep="/")[f"{ours}/scale"]
        expected = state_dict[f"{name}.weight"].astype(np.float32)
        np.testing.assert_array_equal(found, expected)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.dtype == np.float32, params))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_round_trip(stem):
    tree = with_reducers(variables(stem=stem))
    state_dict = convert.to_timm(tree)
    assert all(value.flags.c_contiguous for value in state_dict.values())
    chex.assert_shape(state_dict["reducer.10.Dense.0.weight"], (3, 6))
    assert ("patch_embed.norm.0.running_var" in state_dict) == (stem == "conv")
    chex.assert_trees_all_equal(convert.from_timm(state_dict, tree), tree)


def test_real_weights_give_timms_numbers(assets):
    """Embeddings and the first class-attention row of four lines of NumPy each."""
    like = variables(width=192, depth=12, patch=16, tokens=196, classes=1000)
    path = assets / "weights" / "deit_tiny_patch16_224.npz"
    params = convert.from_timm(
        load.read_metadata(path).tensors, jax.eval_shape(lambda: like)
    )["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 5_717_416
    truth = np.load(assets / "fixtures" / "deit_tiny_timm.npz")
    image = (truth["images_uint8"][0] / 255 - truth["mean"]) / truth["std"]
    patches = image.reshape(14, 16, 14, 16, 3).swapaxes(1, 2).reshape(196, 768)
    stem = params["patch_embed"]["proj"]
    x = patches @ stem["kernel"].reshape(768, 192) + stem["bias"]
    np.testing.assert_allclose(x, truth["patch_embed"][0], atol=1e-4)
    x = np.concatenate([params["cls_token"][0], x]) + params["pos_embed"][0]
    np.testing.assert_allclose(x, truth["embeddings"][0], atol=1e-4)
    block = params["blocks_0"]
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    x = x * block["norm1"]["scale"][None] + block["norm1"]["bias"][None]
    q, k = (x @ block["attn"][n]["kernel"] + block["attn"][n]["bias"] for n in "qk")
    scores = np.einsum("hd,nhd->hn", q[0].reshape(3, 64), k.reshape(197, 3, 64)) / 8
    row = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(row, truth["block0_cls_attn"][0], atol=1e-5)


def test_fresh_parts_keep_their_values():
    """Another head, another stem, new reducers; the file's parts are not looked at."""
    state_dict = convert.to_timm(variables(seed=1))
    state_dict["head.weight"] = np.full((7, 6), np.nan, np.float32)
    like = with_reducers(variables(stem="conv", seed=2))
    fresh = ("head", "patch_embed", "reducer")
    found = convert.from_timm(state_dict, like, fresh)
    parts = ["head", "patch_embed", "reducer_1", "reducer_10"]
    for part in parts:
        chex.assert_trees_all_equal(found["params"].pop(part), like["params"].pop(part))
    chex.assert_trees_all_equal(found["batch_stats"], like["batch_stats"])
    expected = variables(seed=1)["params"]
    del expected["head"], expected["patch_embed"]
    chex.assert_trees_all_equal(found["params"], expected)


def test_fresh_names_whole_parts_only():
    """blocks_1 is not blocks_10, reducer_1 is one of them, norm is not norm1."""
    state_dict = convert.to_timm(with_reducers(variables()))
    like = with_reducers(variables(seed=3))
    found = convert.from_timm(
        state_dict, like, ("reducer_1", "norm", "blocks_1/attn/q")
    )
    old, new = with_reducers(variables())["params"], like["params"]
    found = found["params"]
    chex.assert_trees_all_equal(found["norm"], new["norm"])
    chex.assert_trees_all_equal(found["blocks_0"], old["blocks_0"])
    chex.assert_trees_all_equal(found["reducer_10"], old["reducer_10"])
    attention = found["blocks_1"]["attn"]
    chex.assert_trees_all_equal(attention.pop("q"), new["blocks_1"]["attn"]["q"])
    del old["blocks_1"]["attn"]["q"]
    chex.assert_trees_all_equal(attention, old["blocks_1"]["attn"])
    without = {k: v for k, v in state_dict.items() if not k.startswith("reducer.1.")}
    convert.from_timm(without, like, ("reducer_1",))
    with pytest.raises(InputError, match=r"reducer\.10\.Dense\.0\.weight is missing"):
        without.pop("reducer.10.Dense.0.weight")
        convert.from_timm(without, like, ("reducer_1",))


@pytest.mark.parametrize("old, new", [(14, 7), (4, 6), (9, 24)])
def test_pos_embed_is_resized_as_pillow_resizes(old, new, caplog):
    """Pillow's bicubic is an independent implementation of the same kernel."""
    source = variables(width=6, tokens=old * old)
    like = jax.eval_shape(lambda: variables(width=6, tokens=new * new))
    pos_embed = source["params"]["pos_embed"]
    with caplog.at_level("INFO", logger="absl"):
        places = Positions(prefix=1, grid=(new, new))
        found = convert.from_timm(convert.to_timm(source), like, positions=places)
    found = found["params"]["pos_embed"]
    assert f"resized to {new}x{new}" in caplog.text
    np.testing.assert_array_equal(found[:, 0], pos_embed[:, 0])
    for channel in range(6):
        grid = Image.fromarray(pos_embed[0, 1:, channel].reshape(old, old))
        grid = np.asarray(grid.resize((new, new), Image.Resampling.BICUBIC))
        assert_close(found[0, 1:, channel], grid.ravel())


def test_types_follow_the_model():
    state_dict = {
        k: v.astype(jnp.bfloat16) for k, v in convert.to_timm(variables()).items()
    }
    found = convert.from_timm(state_dict, variables())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
    weight = state_dict["head.weight"].astype(np.float32).T
    np.testing.assert_array_equal(found["params"]["head"]["kernel"], weight)


def change(**changes):
    """The state dict of `variables()` with entries replaced (None: removed)."""
    state_dict = convert.to_timm(variables())
    for name, value in changes.items():
        name = name.replace("__", ".")
        state_dict[name] = value
        if value is None:
            del state_dict[name]
    return state_dict


ZEROS = np.zeros


@pytest.mark.parametrize(
    "state_dict, message",
    [
        (
            change(head__weight=ZEROS((7, 6)), head__bias=ZEROS(7)),
            r"tensor head\.bias has shape \(7,\), head/bias needs \(5,\)$",
        ),
        (
            change(blocks__1__attn__qkv__weight=ZEROS((12, 6))),
            r"blocks\.1\.attn\.qkv\.weight has shape \(12, 6\), blocks_1/attn/k/kernel "
            r"needs \(18, 6\)$",
        ),
        (
            change(blocks__0__norm1__weight=None),
            r"tensor blocks\.0\.norm1\.weight is missing, blocks_0/norm1/scale needs "
            r"it in shape \(6,\)$",
        ),
        (
            change(dist_token=ZEROS((1, 1, 6)), head_dist__weight=ZEROS((5, 6))),
            r"tensor dist_token of shape \(1, 1, 6\) is left over, this model has no "
            "such part$",
        ),
        (
            change(fc_norm__weight=ZEROS(6)),
            r"tensor fc_norm\.weight of shape \(6,\) is left over, this model has no",
        ),
        (
            change(blocks__10__norm1__weight=ZEROS(6)),
            "holds a model of depth 3 and width 6, this one has depth 2 and width 6$",
        ),
        (
            change(pos_embed=ZEROS((1, 13, 6))),
            r"pos_embed has shape \(1, 13, 6\), pos_embed needs \(1, 10, 6\)$",
        ),
        (
            change(pos_embed=ZEROS((1, 17, 8))),
            r"pos_embed has shape \(1, 17, 8\)",
        ),
        (
            change(norm__bias=ZEROS(6, np.int8)),
            r"tensor norm\.bias is of type int8, norm/bias needs floats",
        ),
        (
            change(norm__bias=np.array([0, 0, 0, 0, 0, np.nan])),
            r"tensor norm\.bias holds a value that is not finite in float32",
        ),
        (
            change(norm__bias=np.array([0, 0, 0, 0, 0, 1e39])),
            r"tensor norm\.bias holds a value that is not finite in float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(state_dict, message):
    with pytest.raises(InputError, match=message):
        convert.from_timm(state_dict, variables())


def misfit(state_dict, like=None, fresh=()):
    """The Misfit of tensors that do not fit."""
    with pytest.raises(convert.Misfit) as caught:
        convert.from_timm(state_dict, like or variables(), fresh)
    return caught.value


def test_remedy_names_every_part_that_differs():
    """All at once, with what was fresh already; nothing where it is no help."""
    state_dict = convert.to_timm(variables(classes=7))
    like = with_reducers(variables(stem="conv"))
    remedy = ("reducer_1", "head", "patch_embed", "reducer")
    assert misfit(state_dict, like, ("reducer_1",)).fresh == remedy
    assert misfit(change(pos_embed=ZEROS((1, 13, 6)))).fresh == ("pos_embed",)
    convert.from_timm(state_dict, like, ("reducer_1", "head", "patch_embed", "reducer"))
    with pytest.raises(InputError, match="depth 2 and width 8, this .* 2 and width 6$"):
        convert.from_timm(convert.to_timm(variables(width=8)), variables())
    with pytest.raises(InputError, match=r"is missing, .* in shape \(\d+,\)$"):
        convert.from_timm(convert.to_timm(variables()), variables(stem="conv"))
    with pytest.raises(InputError, match=r"reducer\.1\.\S+ .* no such part$"):
        convert.from_timm(convert.to_timm(like), variables(stem="conv"))
    other = convert.to_timm(variables(stem="conv"))
    assert misfit(other, variables()).fresh == ("patch_embed",)
    assert misfit(change(blocks__0__norm1__weight=None)).fresh == ()


def test_fresh_must_name_a_part():
    message = (
        "config.init.fresh names 'heads'; allowed: blocks, "
        "cls_token, head, norm, patch_embed, pos_embed, reducer$"
    )
    with pytest.raises(InputError, match=message):
        names = ("head", "blocks_0/mlp", "reducer", "heads")
        convert.check_parts(names, with_reducers(variables()), "config.init.fresh")


def test_load_names_the_file(tmp_path):
    path, model = tmp_path / "a.npz", tiny.model()
    np.savez(path, **convert.to_timm(tiny.variables(model)))
    weights = load.read(path, ModelConfig(name="vit_mini", num_heads=tiny.HEADS))
    chex.assert_trees_all_equal(weights.variables(model), tiny.variables(model))
    with pytest.raises(
        InputError, match=r"weights file .*a\.npz: tensor head\.bias has"
    ):
        weights.variables(model.clone(num_classes=6))
