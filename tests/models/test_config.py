"""Fields of a model, what is made of them, and the sentences for wrong ones."""

import json
import pathlib
import pickle

import jax
import pytest

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import create_model
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.rotary import Rotary
from tests.models import tiny


def test_a_reduction_adds_no_parameters():
    key, images = jax.random.key(0), tiny.images(1)
    reduced = jax.eval_shape(tiny.model(tiny.IMAGEPIECE).init, key, images)
    assert reduced == jax.eval_shape(tiny.model().init, key, images)


def test_fields_override_what_the_name_stands_for():
    size = dict(patch_size=8, embed_dim=96, depth=3, num_heads=6, mlp_ratio=2.0)
    model = create_model("deit_s", image_size=64, num_classes=5, **size)
    found = {name: getattr(model, name) for name in size if name != "depth"}
    assert found | {"depth": len(model.plan)} == size
    params = tiny.shapes(model, 64)["params"]
    assert params["blocks_2"]["mlp"]["fc1"]["kernel"].shape == (96, 192)
    assert params["pos_embed"].shape == (1, 1 + 64, 96)
    assert params["head"]["kernel"].shape == (96, 5)
    named = create_model("deit_s", embed_dim=None, depth=None, mlp_ratio=None)
    assert (named.embed_dim, len(named.plan), named.mlp_ratio) == (384, 12, 4.0)


def test_macs_by_hand():
    """4 tokens and the class token, width 6, hidden 12, one block, 2 classes."""
    size = dict(patch_size=4, embed_dim=6, depth=1, num_heads=2, mlp_ratio=2.0)
    model = create_model("vit_mini", image_size=8, num_classes=2, **size)
    stem, projections, weights = 4 * (4 * 4 * 3) * 6, 4 * 5 * 6 * 6, 2 * 5 * 5 * 6
    mlp, head = 2 * 5 * 6 * 12, 6 * 2
    by_hand = stem + projections + weights + mlp + head
    assert model_macs(model, 8) == by_hand


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("patch_size", 0, "whole numbers from 1"),
        ("embed_dim", -384, "whole numbers from 1"),
        ("depth", 0, "whole numbers from 1"),
        ("num_heads", 0, "whole numbers from 1"),
        ("mlp_ratio", 0.0, "numbers above 0"),
        ("mlp_ratio", float("nan"), "numbers above 0"),
        ("mlp_ratio", 1e-4, "a width of 1 or more"),
        ("depth", 1.5, "whole numbers from 1"),
        ("embed_dim", "384", "whole numbers from 1"),
        ("prop_attn", "no", "True, False"),
        ("class_token", 0, "True, False"),
        ("num_heads", 5, "divisors of embed_dim, 384"),
        ("hidden_size", 384, "did you mean image_size?"),
        ("stem", "convolution", "'patch', 'conv'"),
        ("axis_name", 3, "strings"),
        ("dtype", "float8", "float32, bfloat16, float16"),
        ("attention", "flash", "'auto', 'xla', 'cudnn'"),
        ("drop_path_rate", 1.0, "from 0 to below 1"),
        ("drop_path_rate", -0.1, "from 0 to below 1"),
        ("drop_path_rate", float("nan"), "from 0 to below 1"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(InputError) as error:
        create_model("deit_s", **{field: value})
    found = "is not a field" if field == "hidden_size" else str(value)
    assert f"{field} is" in str(error.value)
    assert found in str(error.value) and allowed in str(error.value)


@pytest.mark.parametrize(
    "call, said",
    [
        (
            lambda: imagepiece_jax.create_model("deit_ti", num_heads=5),
            "num_heads is 5; ",
        ),
        (
            lambda: imagepiece_jax.create_model("deit_ti", reduction={"name": "tomee"}),
            "reduction.name is 'tomee'; did you mean tome?",
        ),
        (
            lambda: imagepiece_jax.create_model("deit_ti", image_size=225),
            "image_size is 225; allowed: multiples of patch_size, 16",
        ),
        (
            lambda: imagepiece_jax.load(pathlib.Path(__file__).parent),
            "models is a folder without config.json; allowed",
        ),
    ],
)
def test_calls_of_python_name_keywords(call, said):
    """Commands name fields of the config."""
    with pytest.raises(InputError) as error:
        call()
    assert said in str(error.value) and "config.model" not in str(error.value)
    with pytest.raises(InputError, match="num_heads is 5"):
        create_model("deit_ti", num_heads=5)


@pytest.mark.parametrize("name", imagepiece_jax.__all__)
def test_a_public_function_is_one_object_that_other_processes_find(name):
    public = getattr(imagepiece_jax, name)
    assert public is getattr(imagepiece_jax, name)
    assert pickle.loads(pickle.dumps(public)) is public


def test_a_model_without_a_name_is_made_of_its_fields():
    size = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    arch = {"gelu": "quick", "norm_eps": 1e-5, "registers": 2}
    model = create_model(None, image_size=18, arch=arch, **size)
    assert model.arch == Architecture(gelu="quick", norm_eps=1e-5, registers=2)
    assert model.arch.changed == arch and model.mlp_ratio == 4
    assert model.plan[0].attn_tokens == 16 + 3  # of 18 pixels two are cut
    turned = Architecture(rotary=Rotary(origin="center", reference=(3, 4)))
    plain = json.loads(json.dumps(turned.changed))
    assert create_model(None, arch=plain, **size).arch == turned
    other = create_model(None, arch=arch, resize="offset", **size).arch
    assert (other.resize, other.gelu) == ("offset", "quick")
    with pytest.raises(InputError, match="is None and depth is empty; al"):
        create_model(None, patch_size=4, embed_dim=8, num_heads=2)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"arch": {"rope": 1}},
            r"arch is {'rope': 1}; its fields are c",
        ),
        ({"arch": "vit"}, "arch is 'vit'; its fields are class_token, "),
        ({"arch": {"gelu": "relu"}}, "arch.gelu is 'relu'; allowed: 'exact', 'ta"),
        ({"arch": {"registers": -1}}, "arch.registers is -1; allowed: whole numb"),
        ({"arch": {"pre_norm": 1}}, "arch.pre_norm is 1; allowed: True, False"),
        (
            {"arch": {"rotary": {"base": 1}}},
            "arch.rotary is {'base': 1}; allowed: N",
        ),
        (
            {"arch": {"class_token": False}},
            "arch.pool is 'token' without a class token; allowed: 'mean', 'map'",
        ),
        (
            {"arch": {"dist_token": True, "pool": "mean"}},
            "arch.pool is 'mean' with a distillation token, .*; allowed: 'token'",
        ),
        ({"arch": {"rotary": {"origin": "centre"}}}, "rotary.origin is 'centre'; allo"),
        (
            {"arch": {"rotary": {"reference": 5}}},
            "rotary.reference is 5; allowed: N",
        ),
        ({"arch": {"patch_bias": False}, "stem": "conv"}, "stem is 'conv', whose proj"),
        ({"norm_eps": 5}, "norm_eps is 5; allowed: numbers above 0 an"),
        ({"resize": "nearest"}, "resize is 'nearest'; allowed: 'anti"),
    ],
)
def test_parts_that_there_are_not(fields, message):
    with pytest.raises(InputError, match=message):
        create_model("deit_ti", **fields)


@pytest.mark.parametrize("image_size", [220, 0, -16])
def test_an_image_that_patches_do_not_tile_is_refused(image_size):
    found = f"image_size is {image_size}; .*patch_size, 16"
    with pytest.raises(InputError, match=found):
        create_model("deit_s", image_size=image_size)


def test_a_negative_number_of_classes_is_refused():
    with pytest.raises(InputError, match="num_classes is -1; allowed: whole"):
        create_model("deit_s", num_classes=-1)


def test_a_conv_stem_needs_a_patch_size_that_halving_reaches():
    with pytest.raises(InputError, match="'conv' with patch_size 14 .*power of two"):
        create_model("deit_s", stem="conv", patch_size=14)


@pytest.mark.parametrize(
    "reduction, message",
    [
        ({"name": "tomee"}, "name is 'tomee'; did you mean tome?"),
        ("tome", r"reduction is 'tome'; allowed: a dict with a name and fields"),
        (False, "reduction is False; allowed: a dict with a name and fields"),
        ({"name": "evit", 3: 4}, "reduction is .*3: 4}; allowed: a dict with a name"),
        ({"name": ["evit"]}, r"name is \['evit'\]; did you mean evit"),
        ({"name": "evit", "r": 13}, "r is not a field of 'evit'"),
        ({"name": "none", "keep_rate": 0.7}, "keep_rate is not a"),
        ({"name": "evit", "blocks": (3, 12)}, "step at block 12; .*blocks 0 to 11"),
        ({"name": "imagepiece", "merge_blocks": (-1,)}, "step at block -1"),
        ({"name": "imagepiece", "prune_blocks": (0,)}, "two steps at block 0"),
        ({"name": "imagepiece", "keep_rate": 1.2}, "keep_rate is 1.2"),
    ],
)
def test_a_reduction_that_does_not_fit_is_named(reduction, message):
    with pytest.raises(InputError, match=message):
        create_model("deit_s", reduction=reduction)


def test_proportional_attention_is_as_the_method_is_meant_unless_it_is_said():
    def used(name, **options):
        return create_model("deit_ti", reduction={"name": name}, **options).prop_attn

    assert used("tome") and not used("imagepiece") and not used("none")
    assert not used("tome", prop_attn=False) and used("evit", prop_attn=True)
    without = {"name": "tome", "prop_attn": False}
    assert not create_model("deit_ti", reduction=without).prop_attn
    create_model("deit_ti", reduction=without, prop_attn=False)
    with pytest.raises(InputError, match="prop_attn is True, in reduction False"):
        create_model("deit_ti", reduction=without, prop_attn=True)
    with pytest.raises(InputError, match="prop_attn is 1; allowed:"):
        create_model("deit_ti", reduction={"name": "tome", "prop_attn": 1})


@pytest.mark.parametrize("given, used", [(None, False), (True, True), (False, False)])
def test_mae_is_merged_without_proportional_attention(given, used):
    """Off the shelf, as ToMe's authors use it; other weights of its shape are not."""
    options = {"reduction": {"name": "tome", "r": 8}, "prop_attn": given}
    mae = create_model("vit_base_patch16_224.mae", **options)
    assert mae.prop_attn is used
    for name in ("vit_base_patch16_224", "vit_base_patch16_224.dino"):
        other = create_model(name, **options)
        assert other.prop_attn is (given is not False)
