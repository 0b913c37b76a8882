import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import RunError
from imagepiece_jax.inference.optimize import fold_and_cast
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import PROBLEM_TYPES, ViTConfig
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.weights.description import parse_config
from imagepiece_jax.weights.save import make_config_fields
from tests.helpers import named_models, tiny_vit
from tests.helpers.made_up_recoveries import recovered
from tests.helpers.refused_calls import refused, warns_untrained
from tests.training.cluster.test_checkpoint import full_disk
from tests.weights.test_load import same

SIZE = {"image_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
SQUASHED = {"crop": 0.9, "crop_mode": "squash", "interpolation": "bilinear"}
DYNAMICVIT = "dynamicvit:blocks=(1,):keep_rate=0.6"
CLIP = {"patch_bias": False, "pre_norm": True, "norm_eps": 1e-5, "gelu": "quick"}
SIGLIP = {"class_token": False, "pool": "map", "gelu": "tanh"}
GIANT = {"layer_scale": True, "mlp": "swiglu", "resize": "offset"}
DINOV3 = {"positions": False, "rotary": {"origin": "center"}, "registers": 2}
DINOV3 |= {"key_bias": False, "layer_scale": True, "mlp": "swiglu", "norm_eps": 1e-5}
EVA02 = {"rotary": {"reference": (4, 4)}, "key_bias": False, "mlp": "swiglu"}
EVA02 |= {"attn_norm": True, "mlp_norm": True, "pool": "mean", "fc_norm": True}
EVA02 |= {"final_norm": False}
# {what a case shows: fields of a ViTConfig, and a reduction}
MODELS = {
    "dense": {},
    "registers": {"arch": {"registers": 2, "prefix_positions": False}},
    "clip": {"arch": CLIP, "mean": (0.48, 0.45, 0.4), "std": (0.2,) * 3}
    | {"problem_type": "projection"},
    "siglip": {"arch": SIGLIP, "num_classes": 0, "image_size": 18},
    "giant": {"arch": GIANT, "num_classes": 0},
    "distilled": {"arch": {"dist_token": True}},
    "4 x 9 patches": {"image_size": (16, 36)},  # a square number of them
    "numbers of NumPy": {"num_classes": np.int64(7), "mean": np.full(3, 0.5)}
    | {"std": np.full(3, 0.5), "reduction": ToMe(r=np.int64(3))},
    "conv stem": {"stem": "conv"},
    "dinov3": {"arch": DINOV3, "num_classes": 0},
    "eva02": {"arch": EVA02},
    "selectors": {"reduction": DYNAMICVIT, "dtype": "bfloat16"},
    "facts": {"class_names": ("a", None, *"cdefg"), "problem_type": PROBLEM_TYPES[1]}
    | {**SQUASHED, "rule": "transformers"},
    "prop_attn": {"reduction": "evit:blocks=(1,)", "prop_attn": True},
    "post_norm": {"arch": Architecture(post_norm=True)},
    "map": {"arch": Architecture(pool="map", pool_heads=1, pool_mlp_ratio=1.5)},
}


def make(reduction=None, class_names=None, **fields):
    """A random Pretrained with `fields`, for images of 16 x 16 pixels."""
    vit = tiny_vit.pretrained(reduction, **SIZE | fields)
    return dataclasses.replace(vit, class_names=class_names)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_unchanged(tmp_path, name):
    vit = make(**MODELS[name])
    origin = dataclasses.replace(vit.origin, license="dinov3-license")
    vit = dataclasses.replace(vit, origin=origin)
    assert imagepiece_jax.save(vit, tmp_path / "m") == tmp_path / "m"
    loaded = imagepiece_jax.load(tmp_path / "m")
    assert (loaded.model, loaded.reduction) == (vit.model, vit.reduction)
    assert same(loaded.variables, vit.variables)
    assert loaded.class_names == vit.class_names
    assert loaded.origin.license == "dinov3-license"
    # Saving the loaded model writes equal files.
    again = imagepiece_jax.save(loaded, tmp_path / "again")
    for file in (tmp_path / "m").iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def describe_model(name, class_names=None, reduction=None, **fields):
    model = create_model(named_models.config(name, **fields), reduction)
    return make_config_fields(Pretrained(model, {"params": {}}, class_names))


def test_a_public_models_config_has_timms_fields():
    names = ("a", None, "c")
    saved = describe_model("test_vit", names, image_size=64, num_classes=3, **SQUASHED)
    assert (saved["architecture"], saved["num_classes"]) == ("test_vit", 3)
    assert saved["label_names"] == {"0": "a", "2": "c"}
    images = {"input_size": [3, 64, 64], "mean": (0.5,) * 3, "crop_pct": 0.9}
    images |= {"crop_mode": "squash", "interpolation": "bilinear"}
    assert images.items() <= saved["pretrained_cfg"].items()
    # timm's architecture may have another GELU than the published weights.
    clip = describe_model("vit_base_patch16_clip_224.openai")
    assert clip["architecture"] == "vit_base_patch16_clip_224"
    assert clip["model_args"] == {"act_layer": "quick_gelu", "img_size": 224}


def test_a_given_reduction_has_its_own_prop_attn(tmp_path):
    imagepiece_jax.save(make(reduction="tome:r=3:prop_attn=False"), tmp_path / "m")
    for given, expected in (("trained", False), ("tome:r=3", True), (None, False)):
        assert imagepiece_jax.load(tmp_path / "m", given).model.prop_attn is expected


THREE = (0.1, 0.2, 0.3)
CONFIG = "imagepiece_jax.config"


@pytest.mark.parametrize(
    "changed, value, message",
    [
        ("imagepiece_jax.format", 3, "earlier revision"),
        (f"{CONFIG}.mean", THREE, "config says (0.1, 0.2, 0.3)"),
        ("pretrained_cfg.std", THREE, "pretrained_cfg.std is (0.1, 0.2, 0.3), but"),
        (f"{CONFIG}.preprocessing.image_size", 32, "config says (3, 32, 32)"),
        ("imagepiece_jax.reduction", "evit:keep_rate=2", "keep_rate is 2"),
        ("imagepiece_jax.class_names", ["a"], "class_names"),
        ("imagepiece_jax.untrained", 3, "unknown field"),
        ("imagepiece_jax.dtype", 1, ""),
        ("imagepiece_jax.dtype", "x", ""),
        ("imagepiece_jax.dtype", [], ""),
        ("imagepiece_jax.class_names", 3, ""),
        ("imagepiece_jax.reduction", None, "reduction is None"),
        ("imagepiece_jax.config", {}, ""),
        ("imagepiece_jax.config", 3, ""),
    ],
)
def test_a_changed_config_is_refused(changed, value, message):
    reduction = "evit:keep_rate=0.5:blocks=(1,)"
    config = describe_model("vit_tiny_patch16_224", reduction=reduction, num_classes=7)
    *groups, last = changed.split(".")
    functools.reduce(dict.get, groups, config)[last] = value
    with refused("config.json", message):
        parse_config(config, {})


def learned(seed):
    vit = make(reduction=DYNAMICVIT)
    return vit.with_variables(tiny_vit.variables(vit.model, seed))


def recover(seed):
    vit = make()
    vit = vit.with_variables(tiny_vit.variables(vit.model, seed))
    return recovered(vit, reductions=(f"tome:r={seed}",))


@pytest.mark.parametrize(
    "make_other, name", [(learned, "selectors"), (recover, "recovered")]
)
def test_files_of_two_models_are_refused(tmp_path, make_other, name):
    learned_file = f"{name}.safetensors"
    other = imagepiece_jax.save(make_other(2), tmp_path / "other")
    first = imagepiece_jax.save(make_other(1), tmp_path / "first")
    dense = imagepiece_jax.save(make(), tmp_path / "dense")
    copies = [(first, "model.safetensors"), (first, learned_file)]
    for folder, file in (*copies, (first, "config.json"), (dense, learned_file)):
        mixed = shutil.copytree(folder, tmp_path / f"{folder.name}-{file}")
        shutil.copy(other / file, mixed)
        with refused(str(mixed), "belongs to other weights"):
            imagepiece_jax.load(mixed)
    imagepiece_jax.load(first)


RECORDS = {"config": ViTConfig, "config.preprocessing": Preprocessing}
RECORDS |= {"config.arch": Architecture, "config.arch.rotary": Rotary}


@pytest.mark.parametrize("group, kind", RECORDS.items())
def test_every_field_of_a_record_is_needed(group, kind):
    """A missing field would become DeiT's."""
    config = json.loads(json.dumps(make_config_fields(make(**MODELS["eva02"]))))
    parse_config(config, {})
    for field in dataclasses.fields(kind):
        changed = json.loads(json.dumps(config))
        groups = group.split(".")
        del functools.reduce(dict.get, groups, changed["imagepiece_jax"])[field.name]
        with refused("config.json", f"it has no {field.name}"):
            parse_config(changed, {})


def test_saving_keeps_other_reductions_selectors(tmp_path):
    vit = learned(1)
    imagepiece_jax.save(vit, tmp_path / "m")
    dense = imagepiece_jax.load(tmp_path / "m", "none")
    imagepiece_jax.save(dense, tmp_path / "m")
    assert imagepiece_jax.load(tmp_path / "m").model == dense.model
    reloaded = imagepiece_jax.load(tmp_path / "m", DYNAMICVIT)
    assert same(reloaded.variables, vit.variables)
    # Selectors of the same block are replaced.
    spvit = dense.with_reduction("spvit:blocks=(1,):keep_rates=(0.5,)", seed=0)
    trained = jax.tree.map(lambda leaf: leaf + 1, spvit.variables)
    spvit = spvit.with_variables(trained)
    imagepiece_jax.save(spvit, tmp_path / "m")
    assert same(imagepiece_jax.load(tmp_path / "m").variables, trained)


def test_a_full_disk_keeps_the_saved_model(tmp_path):
    vit = make(reduction=DYNAMICVIT)
    path = imagepiece_jax.save(vit, tmp_path / "m")
    with full_disk(), pytest.raises(RunError, match=f"{path} cannot be written"):
        imagepiece_jax.save(make(), path)
    assert imagepiece_jax.load(path).model == vit.model


def test_saving_destroys_no_other_folder(tmp_path, monkeypatch):
    """A process working in a replaced folder would see the old, empty one."""
    folder = imagepiece_jax.save(make(), tmp_path / "m")
    (folder / "thesis.tex").touch()
    with refused(folder, "thesis.tex"):
        imagepiece_jax.save(make(), folder)
    (tmp_path / "config.json").write_text("{}")
    with refused(tmp_path, "config.json"):
        imagepiece_jax.save(make(), tmp_path)
    (folder / "thesis.tex").unlink()
    monkeypatch.chdir(folder)
    with refused("is the working directory"):
        imagepiece_jax.save(make(), ".")
    assert imagepiece_jax.load(folder).model == make().model


def test_an_unloadable_model_is_not_saved(tmp_path):
    model, variables = tiny_vit.pair(make())
    evit = make(reduction="evit:blocks=(1,)").model
    partial = {"params": {**variables["params"], "norm": {}}}
    spoilt = jax.tree.map(np.array, variables)
    spoilt["params"]["cls_token"][0, 0, 0] = np.nan
    for vit, text in (
        (Pretrained(evit.clone(reduction=None), variables), "reduction"),
        (Pretrained(*fold_and_cast(model, variables)), "changed by optimize"),
        (Pretrained(model, partial), "norm"),
        (Pretrained(model, spoilt), "cls_token has a value that is not finite"),
    ):
        with refused(text):
            imagepiece_jax.save(vit, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_drawn_selectors_stay_untrained(tmp_path):
    vit = make().with_reduction(DYNAMICVIT, seed=1)
    with warns_untrained("selectors"):
        imagepiece_jax.save(vit, tmp_path / "m")
    loaded = imagepiece_jax.load(tmp_path / "m")
    assert (loaded.label, loaded.model) == (vit.label, vit.model)
    assert not imagepiece_jax.load(tmp_path / "m", reduction="none").untrained_kinds


def test_a_drawn_head_is_untrained_until_its_values_change(tmp_path):
    file = tiny_vit.write(tmp_path / "w.npz", tiny_vit.pretrained().variables)
    fields = {"config": tiny_vit.model().config, "num_classes": 4}
    with warns_untrained():
        vit = imagepiece_jax.load(file, reduction=tiny_vit.EVIT, **fields)
    assert vit.with_reduction("tome:r=3").label == "tome:r=3 (untrained head)"
    with warns_untrained():
        imagepiece_jax.optimize(vit, batch_size=1)
    with warns_untrained():
        imagepiece_jax.save(vit, tmp_path / "m")
    reloaded = imagepiece_jax.load(tmp_path / "m")
    assert (reloaded.untrained_kinds, reloaded.label) == (("head",), vit.label)
    # Changed values count as trained; without a head nothing was drawn.
    params = reloaded.variables["params"]
    head = jax.tree.map(lambda leaf: leaf + 1, params["head"])
    trained = {**reloaded.variables, "params": {**params, "head": head}}
    assert reloaded.with_variables(trained).untrained_kinds == ()
    assert not imagepiece_jax.load(tmp_path / "m", num_classes=0).untrained_kinds
