"""Model fields inferred from the tensors alone."""

import jax
import numpy as np
import pytest
from imagepiece_jax.weights.infer import Unnamed, infer

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.variables import variable_shapes
from tests.models.make import create_model
from tests.refused import refused

# What no tensor of DeiT shows.
OPEN = ["norm_eps", "gelu", "resize", "rotary", "post_norm", "pool"]
SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2}


def named_shapes(model, image_size):
    """The state dict as names and shapes: nothing is allocated."""
    found = timm_tensors.timm_shapes(variable_shapes(model))
    return {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in found.items()}


@pytest.mark.parametrize(
    "name, image_size, options",
    [
        ("deit_ti", 32, {"num_classes": 10}),
        ("deit_s", 64, SMALL | {"class_token": False}),
        ("deit_s", 48, SMALL | {"patch_size": 8, "stem": "conv"}),
        ("deit_s", 40, SMALL | {"patch_size": 10, "mlp_ratio": 3.0}),
    ],
)
def test_the_same_model_is_made_again(name, image_size, options):
    model = create_model(name, image_size=image_size, **options)
    given = {"name": name} | {k: v for k, v in options.items() if k != "num_classes"}
    found = infer(named_shapes(model, image_size), ModelSpec.from_fields(given))
    assert found.create() == model
    assert found.image_size == image_size
    assert found.name == name


@pytest.mark.parametrize(
    "name, meant",
    [
        ("deit_ti", "name=.. (deit_ti, vit_tiny_patch16_224"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2"),
        ("vit_large_patch16_dinov3.lvd1689m", "vit_large_patch16_dinov3.sat493m"),
        ("vit_small_patch16_dinov3_qkvb.lvd1689m", "vit_small_patch16_lingbot"),
        ("deit3_small_patch16_224.fb_in1k", "vit_small_patch16_rope_ape_224)"),
        ("vit_base_patch16_224.mae", "vit_base_patch16_224.dino"),
    ],
)
def test_nothing_is_guessed(name, meant):
    """Not even where one known model alone has these sizes and parts."""
    side = 56 if "14" in name else 64
    shapes = named_shapes(create_model(name, image_size=side), side)
    with pytest.raises(Unnamed) as error:
        infer(shapes, ModelSpec())
    assert error.value.lacking[0] == "num_heads"
    assert meant in str(error.value)


@pytest.mark.parametrize(
    "given, field, value, ours",
    [
        ({}, "num_heads", ["num_heads", "mean", "std", *OPEN], "give num_heads=.."),
        ({"name": "deit_s"}, "name", "deit_s", "384, but these tensors have width 128"),
        ({"name": "deit3_small_patch16_224"}, "prefix_positions", False, "but True"),
        ({"name": "deit_s", "class_token": False}, "class_token", False, "but True"),
    ],
)
def test_what_neither_tensors_nor_name_say(given, field, value, ours):
    model = create_model("deit_s", image_size=32, **SMALL)
    with refused(field, ours):
        infer(named_shapes(model, 32), ModelSpec.from_fields(given))


ONE_BY_ONE = {"num_heads": 2, "gelu": "exact", "norm_eps": 1e-6, "resize": "antialias"}
ONE_BY_ONE |= {"rotary": False, "post_norm": False, "pool": "token"}
HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def lacking(model, side, **given):
    """Fields that an error names where `given` alone is said of a model's tensors."""
    with pytest.raises(Unnamed) as error:
        infer(named_shapes(model, side), ModelSpec.from_fields(given))
    return error.value.lacking


def test_without_position_embedding_a_model_is_known_or_lacks_it():
    """No tensor says that positions are rotary: the file could be a broken one."""
    name = "vit_small_patch16_dinov3"
    model = create_model(name, depth=3)
    assert {"mean", "std", "image_size"} < {*lacking(model, 64)}
    found = infer(named_shapes(model, 64), ModelSpec(name=name, image_size=64))
    assert found.create() == create_model(name, depth=3, image_size=64)
    with pytest.raises(InputError, match="tensor pos_embed is missing"):
        infer(named_shapes(model, 64), ModelSpec(name="deit_s"))
    given = ONE_BY_ONE | HALVES
    without = {k: v for k, v in given.items() if k != "rotary"}
    assert {*lacking(model, 64, **without)} == {"image_size", "rotary"}
    arch = {"positions": False, "rotary": {"origin": "center"}}
    turned = create_model("deit_s", image_size=32, arch=arch, **SMALL)
    given = ModelSpec.from_fields(without | {"arch": arch, "image_size": 32})
    found = infer(named_shapes(turned, 32), given)
    assert found.create().arch.rotary == turned.arch.rotary


def test_evas_tensors_do_not_say_where_their_norms_are():
    """Norms behind the branches have the same tensors (eva02_enormous): 72 % off."""
    eva = create_model("eva_giant_patch14_224", image_size=28, **SMALL)
    assert {"rotary", "post_norm"} < {*lacking(eva, 28)}
    fields = ONE_BY_ONE | HALVES | {"pool_include_prefix": False, "pool": "mean"}
    for given in (
        {"name": "eva_giant_patch14_224", "num_heads": 2},
        fields | {"arch": eva.arch},
        fields,
    ):
        found = infer(
            named_shapes(eva, 28), ModelSpec.from_fields(given), {"fc_norm": True}
        )
        assert found.create().arch == eva.arch


NO_NORM = {"class_token": False, "qkv_bias": False, "pool": "mean"}
NO_NORM |= {"final_norm": False, "fc_norm": True}
MEAN = {"pool": "mean", "class_token": False}


@pytest.mark.parametrize(
    "arch, fields",
    [
        ({}, {"pool": "token"}),
        (NO_NORM, {"pool": "mean"}),
        (NO_NORM | {"pool": "none"}, {"pool": "none"}),
        ({"post_norm": True}, {"post_norm": True}),
        # Whether a pool reads registers is not guessed.
        (
            {"registers": 2, "pool": "map", "pool_heads": 1},
            {"pool_include_prefix": False, "pool_heads": 1},
        ),
        ({"class_token": False, "pool": "map"}, {"pool_heads": 0}),
        ({"pool": "mean", "registers": 1}, {"pool_include_prefix": False}),
        (MEAN | {"mlp": "swiglu"}, {"mlp": "swiglu"}),
        (MEAN | {"layer_scale": True}, {"rotary": False}),
        # 16 positions and a prefix of seven: of 3 x 3 patches, or of 4 x 4.
        (
            {"registers": 6, "prefix_positions": False},
            {"prefix_positions": False},
        ),
    ],
)
def test_what_no_tensor_shows_is_asked_for(arch, fields):
    model = create_model("deit_s", image_size=64, arch=arch, num_classes=0, **SMALL)
    known = ONE_BY_ONE | HALVES | {"pool": model.config.arch.pool}
    known = {k: v for k, v in known.items() if k not in fields}
    if model.config.arch.pool == "map":
        del known["pool"]
    shapes = named_shapes(model, 64)
    with pytest.raises(Unnamed) as error:
        infer(
            shapes, ModelSpec.from_fields(known), {"fc_norm": model.config.arch.fc_norm}
        )
    assert {*error.value.lacking} == {*fields}
    known |= fields
    found = infer(
        shapes, ModelSpec.from_fields(known), {"fc_norm": model.config.arch.fc_norm}
    )
    assert found.create().arch == model.config.arch
    assert found.image_size == 64


def test_a_size_may_be_that_of_other_images():
    """Of 13 x 15 patches there are 195, of DeiT-III 196 positions and a class token."""
    name = "deit3_small_patch16_224"
    size = (208, 240)
    shapes = named_shapes(create_model(name), 224)
    images = HALVES | {"image_size": size}
    assert infer(shapes, ModelSpec(name=name, **images)).image_size == 224
    fields = ONE_BY_ONE | images | {"num_heads": 6}
    with pytest.raises(Unnamed) as error:
        infer(shapes, ModelSpec.from_fields(fields))
    assert error.value.lacking == ["prefix_positions"]
    found = infer(shapes, ModelSpec.from_fields(fields | {"prefix_positions": False}))
    assert found.image_size == 224
    found = infer(shapes, ModelSpec.from_fields(fields | {"prefix_positions": True}))
    assert found.image_size == size


def test_the_norm_in_front_of_a_mean_may_be_behind_it():
    """OpenCLIP's final_ln_after_pool has the same tensors."""
    model = create_model("deit_s", image_size=64, arch=MEAN, **SMALL)
    given = ONE_BY_ONE | HALVES | {"pool": "mean"}
    assert lacking(model, 64, **given) == ["fc_norm"]


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_a_norm_behind_the_pool_does_not_say_what_is_pooled(pool):
    """timm has fc_norm=True with a class token; MAE's fine-tuned models take a mean."""
    arch = {"fc_norm": True, "final_norm": False, "pool": pool}
    model = create_model("deit_s", image_size=32, arch=arch, **SMALL)
    reads = {"pool": pool, "pool_include_prefix": False}
    given = ModelSpec.from_fields(ONE_BY_ONE | HALVES | reads | {"arch": arch})
    found = infer(named_shapes(model, 32), given)
    assert found.create().arch == model.config.arch
