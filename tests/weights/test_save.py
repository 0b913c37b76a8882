"""Saved models: loaded again, and the files of their folder."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import imagepiece_jax
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import RunError
from imagepiece_jax.inference.optimize import fold_and_cast
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.head import PROBLEM_TYPES
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.weights.description import parse_config
from imagepiece_jax.weights.save import make_config_fields
from tests.helpers import named_models, tiny_vit
from tests.helpers.made_up_recoveries import recovered
from tests.helpers.refused_calls import refused, untrained
from tests.training.test_trainer_full_disk import full_disk
from tests.weights.test_load_published import same

SIZE = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
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
# Fields of a ViTConfig, and a reduction, by what they are to show.
MODELS = {
    "dense": {},
    "registers": {"arch": {"registers": 2, "prefix_positions": False}},
    "clip": {"arch": CLIP, "mean": (0.48, 0.45, 0.4), "std": (0.2,) * 3}
    | {"problem_type": "projection"},
    "siglip": {"arch": SIGLIP, "num_classes": 0, "image_size": 18},
    "giant": {"arch": GIANT, "num_classes": 0},
    "distilled": {"arch": {"dist_token": True}},
    "distilled, positions of patches": {
        "arch": {"dist_token": True, "prefix_positions": False}
    },
    "mean": {"arch": {"pool": "mean"}},
    "fc_norm": {"arch": {"fc_norm": True, "final_norm": False}},
    "large eps": {"arch": {"norm_eps": 1e-3}},
    "4 x 9 patches": {"image_size": (16, 36)},  # a square number of them
    "numbers of NumPy": {"num_classes": np.int64(7), "mean": np.full(3, 0.5)}
    | {"std": np.full(3, 0.5), "reduction": ToMe(r=np.int64(3))},
    "conv stem": {"stem": "conv"},
    "dinov3": {"arch": DINOV3, "num_classes": 0},
    "eva02": {"arch": EVA02},
    "selectors": {"reduction": DYNAMICVIT, "dtype": "bfloat16"},
    "facts": {"class_names": ("a", None, *"cdefg"), "problem_type": PROBLEM_TYPES[1]}
    | {"preprocessing": {**SQUASHED, "rule": "transformers"}},
    "prop_attn": {"reduction": "evit:blocks=(1,)", "prop_attn": True},
    "no pool": {"arch": Architecture(pool="none"), "num_classes": 0},
    "post_norm": {"arch": Architecture(post_norm=True)},
    "pool_heads": {"arch": Architecture(pool="map", pool_heads=1)},
    "pool_mlp_ratio": {"arch": Architecture(pool="map", pool_mlp_ratio=1.5)},
}


def made(
    class_names=None, preprocessing=None, reduction=None, dtype="float32", **fields
):
    """A Pretrained of `fields`, with random variables, on images of 16 x 16 pixels."""
    usual = {"image_size": 16, "num_classes": 7, **SIZE, "arch": Architecture()}
    model = create_model(
        named_models.config(None, **usual | fields), reduction, dtype=dtype
    )
    vit = Pretrained(model, tiny_vit.fill(variable_shapes(model)), class_names)
    return vit.with_preprocessing(**preprocessing or {})


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_as_it_was(tmp_path, name):
    vit = made(**MODELS[name])
    assert imagepiece_jax.save(vit, tmp_path / "m") == tmp_path / "m"
    found = imagepiece_jax.load(tmp_path / "m")
    assert (found.model, found.reduction) == (vit.model, vit.reduction)
    assert same(found.variables, vit.variables)
    assert found.preprocessing == vit.preprocessing
    assert found.class_names == vit.class_names
    # Saving what was loaded writes the same files.
    (tmp_path / "again").mkdir()
    again = imagepiece_jax.save(found, tmp_path / "again" / "m")
    for file in (tmp_path / "m").iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_a_folder_holds_the_dense_part_by_timms_names_and_the_rest_beside_it(tmp_path):
    vit = made(reduction=DYNAMICVIT)
    folder = imagepiece_jax.save(vit, tmp_path / "m")
    weights = {"model.safetensors", "selectors.safetensors"}
    assert {file.name for file in folder.iterdir()} == weights | {"config.json"}
    dense = {*safetensors.numpy.load_file(folder / "model.safetensors")}
    learned = {*safetensors.numpy.load_file(folder / "selectors.safetensors")}
    assert not any("reducer" in name for name in dense)
    assert learned and all(name.startswith("reducer.1.") for name in learned)
    assert dense | learned == timm_tensors.to_timm(vit.variables).keys()


def description(name, class_names=None, reduction=None, **fields):
    model = create_model(named_models.config(name, **fields), reduction)
    return make_config_fields(Pretrained(model, {"params": {}}, class_names))


PUBLIC = ["vit_small_patch14_reg4_dinov2.lvd142m", "test_vit3.r160_in1k"]


@pytest.mark.parametrize("name", [*PUBLIC, "vit_base_patch16_clip_224.openai"])
def test_a_public_model_keeps_its_architecture(name):
    """Also the kind of GELU, as timm's architecture of that name may have another."""
    config = registry.model_config(name)
    found = description(name)
    assert found["architecture"] == name.partition(".")[0]
    gelu = {"exact": "gelu", "quick": "quick_gelu"}[config.arch.gelu]
    assert found["model_args"] == {"act_layer": gelu} | {"img_size": config.image_size}


def test_what_timm_reads_of_a_public_model():
    names = ("a", None, "c")
    found = description("test_vit", names, image_size=64, num_classes=3, **SQUASHED)
    assert found["architecture"] == "test_vit"
    assert found["num_classes"] == 3
    assert found["label_names"] == {"0": "a", "2": "c"}
    images = found["pretrained_cfg"]
    assert images["input_size"] == [3, 64, 64]
    assert images["mean"] == (0.5,) * 3
    assert (images["crop_pct"], images["crop_mode"]) == (0.9, "squash")
    assert images["interpolation"] == "bilinear"
    usual = description("test_vit", crop=None)["pretrained_cfg"]
    assert (usual["crop_pct"], usual["crop_mode"]) == (0.875, "center")


@pytest.mark.parametrize("name", ["dense", "large eps"])
def test_another_model_is_none_of_timms(name):
    found = make_config_fields(made(**MODELS[name]))
    assert found["architecture"] == "imagepiece_jax"
    assert found.keys() == {"architecture", "imagepiece_jax"}


def test_a_loaded_model_may_get_another_reduction(tmp_path):
    path = imagepiece_jax.save(made(reduction=DYNAMICVIT), tmp_path / "m")
    tome = "tome:r=3"
    found = imagepiece_jax.load(path, reduction=tome)
    assert found.model.prop_attn
    assert "reducer_1" not in found.variables["params"]
    imagepiece_jax.save(found, tmp_path / "tome")
    assert not imagepiece_jax.load(tmp_path / "tome", reduction="none").model.prop_attn
    with untrained():
        fresh, values = tiny_vit.pair(imagepiece_jax.load(path, num_classes=3))
    assert fresh.config.num_classes == 3
    assert "reducer_1" in values["params"]
    # A reduction that is given has its own.
    imagepiece_jax.save(made(reduction=f"{tome}:prop_attn=False"), tmp_path / "m")
    for fields, own in (({}, False), ({"reduction": tome}, True)):
        assert imagepiece_jax.load(tmp_path / "m", **fields).model.prop_attn is own


def test_the_file_of_a_saved_folder_is_not_loaded_alone(tmp_path):
    path = imagepiece_jax.save(made(), tmp_path / "m")
    with refused(f"its folder, {path}, has a config.json"):
        imagepiece_jax.load(path / "model.safetensors")


THREE = (0.1, 0.2, 0.3)
CONFIG = "imagepiece_jax.config"


@pytest.mark.parametrize(
    "changed, value, said",
    [
        ("imagepiece_jax.format", 3, "format is 3; this version reads 4"),
        (f"{CONFIG}.foo", 3, "foo"),
        (f"{CONFIG}.mean", THREE, "config says (0.1, 0.2, 0.3)"),
        ("pretrained_cfg.std", THREE, "pretrained_cfg.std is (0.1, 0.2, 0.3), but"),
        (f"{CONFIG}.preprocessing.image_size", 32, "config says (3, 32, 32)"),
        ("imagepiece_jax.reduction", "evit:keep_rate=2", "keep_rate is 2"),
    ],
)
def test_a_config_that_somebody_changed_is_refused(changed, value, said):
    """Where it contradicts itself, too, on the images."""
    reduction = "evit:keep_rate=0.5:blocks=(1,)"
    config = description("vit_tiny_patch16_224", reduction=reduction, num_classes=7)
    *groups, last = changed.split(".")
    part = config
    for group in groups:
        part = part[group]
    part[last] = value
    with refused("config.json", said):
        parse_config(config, {})


@pytest.mark.parametrize(
    "group, kind",
    [
        ("config", ViTConfig),
        ("config.preprocessing", Preprocessing),
        ("config.arch", Architecture),
        ("config.arch.rotary", Rotary),
    ],
)
def test_a_record_lacks_no_field(group, kind):
    """Missing fields would be DeiT's."""
    config = json.loads(json.dumps(make_config_fields(made(**MODELS["eva02"]))))
    parse_config(config, {})
    for field in dataclasses.fields(kind):
        part = changed = json.loads(json.dumps(config))
        for name in ("imagepiece_jax", *group.split(".")):
            part = part[name]
        del part[field.name]
        with refused("config.json", f"has no {field.name}"):
            parse_config(changed, {})


WRONG = {"dtype": (1, "x", []), "class_names": (3, ["a"]), "reduction": [None]}
WRONG |= {"untrained": [3], "config": ({}, 3)}


@pytest.mark.parametrize("field", WRONG)
def test_a_value_of_another_type_is_refused(field):
    config = json.loads(json.dumps(make_config_fields(made())))
    for value in WRONG[field]:
        config["imagepiece_jax"][field] = value
        with refused("config.json"):
            parse_config(config, {})


def learned(seed):
    vit = made(reduction=DYNAMICVIT)
    return vit.with_variables(tiny_vit.fill(variable_shapes(vit.model), seed))


def recovered_of(seed):
    vit = made()
    vit = vit.with_variables(tiny_vit.variables(vit.model, seed=seed))
    return recovered(vit, reductions=(f"tome:r={seed}",))


@pytest.mark.parametrize(
    "models, files",
    [
        (lambda: (learned(1), learned(2)), ("model", "selectors", "config")),
        (lambda: (recovered_of(1), recovered_of(2)), ("model", "recovered", "config")),
        # Files that another copy left behind.
        (lambda: (made(), learned(2)), ("selectors",)),
        (lambda: (made(), recovered_of(2)), ("recovered",)),
    ],
)
def test_files_of_two_models_are_refused(tmp_path, models, files):
    one, other = models()
    first = imagepiece_jax.save(one, tmp_path / "one")
    second = imagepiece_jax.save(other, tmp_path / "other")
    for name in files:
        (file,) = second.glob(f"{name}.*")
        mixed = shutil.copytree(first, tmp_path / name)
        shutil.copy(file, mixed)
        with refused(str(mixed), "belongs to another model"):
            imagepiece_jax.load(mixed)
    imagepiece_jax.load(first)


def test_selectors_of_other_reductions_stay(tmp_path):
    vit = learned(1)
    imagepiece_jax.save(vit, tmp_path / "m")
    dense = imagepiece_jax.load(tmp_path / "m", "none")
    imagepiece_jax.save(dense, tmp_path / "m")
    assert imagepiece_jax.load(tmp_path / "m").model == dense.model
    again = imagepiece_jax.load(tmp_path / "m", DYNAMICVIT)
    assert same(again.variables, vit.variables)
    # Those of the same block make place.
    spvit = dense.with_reduction("spvit:blocks=(1,):keep_rates=(0.5,)", seed=0)
    trained = jax.tree.map(lambda leaf: leaf + 1, spvit.variables)
    spvit = spvit.with_variables(trained)
    imagepiece_jax.save(spvit, tmp_path / "m")
    assert same(imagepiece_jax.load(tmp_path / "m").variables, trained)


def test_a_model_that_is_there_is_replaced_as_a_whole(tmp_path):
    vit = made(reduction=DYNAMICVIT)
    other = made()
    path = imagepiece_jax.save(vit, tmp_path / "m")
    with full_disk(), pytest.raises(RunError, match=f"{path} cannot be written"):
        imagepiece_jax.save(other, path)
    assert imagepiece_jax.load(path).model == vit.model
    imagepiece_jax.save(other, path)
    assert imagepiece_jax.load(path).model == other.model
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("file", ["config.json", "thesis.tex"])
def test_what_is_no_folder_to_save_in(tmp_path, file):
    (tmp_path / file).write_text("{}")
    with refused(f"folder {tmp_path} holds {file}"):
        imagepiece_jax.save(made(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_files_of_others_in_a_saved_folder_stay(tmp_path):
    folder = imagepiece_jax.save(made(), tmp_path / "m")
    (folder / "notes.tmp").touch()
    with refused("notes.tmp"):
        imagepiece_jax.save(made(), folder)
    with pytest.raises(NotADirectoryError):
        imagepiece_jax.save(made(), folder / "config.json")
    assert imagepiece_jax.load(folder).model == made().model


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    """Who works there would see an empty folder, the one that was there before."""
    (tmp_path / "new").mkdir()
    for folder in (tmp_path / "new", imagepiece_jax.save(made(), tmp_path / "m")):
        monkeypatch.chdir(folder)
        with refused("is the working directory"):
            imagepiece_jax.save(made(), ".")


def test_the_license_of_timms_config_stays(tmp_path):
    vit = made()
    config = description("test_vit")
    del config["imagepiece_jax"]
    config["pretrained_cfg"]["license"] = "dinov3-license"
    license = parse_config(config, {}).license
    origin = dataclasses.replace(vit.origin, license=license)
    folder = tmp_path / "m"
    imagepiece_jax.save(dataclasses.replace(vit, origin=origin), folder)
    assert imagepiece_jax.load(folder).origin.license == "dinov3-license"


def test_what_cannot_be_loaded_again_is_not_saved(tmp_path):
    model, variables = tiny_vit.pair(made())
    evit = made(reduction="evit:blocks=(1,)").model
    without = {"params": {**variables["params"], "norm": {}}}
    spoilt = jax.tree.map(np.array, variables)
    spoilt["params"]["cls_token"][0, 0, 0] = np.nan
    for other, *facts in (
        (Pretrained(evit.clone(reduction=None), variables), "reduction"),
        (Pretrained(*fold_and_cast(model, variables)), "model", "changed by optimize"),
        (Pretrained(model, without), "params/norm/bias", "missing"),
        (Pretrained(made(num_classes=3).model, variables), "params/head/bias", "(7,)"),
        (Pretrained(model, spoilt), "tensor cls_token"),
    ):
        with refused(*facts) as error:
            imagepiece_jax.save(other, tmp_path / "m")
    assert "tensor cls_token has a value that is not finite" in str(error.value)
    assert not (tmp_path / "m").exists()


def test_selectors_that_were_drawn_stay_untrained(tmp_path):
    vit = made().with_reduction(DYNAMICVIT, seed=1)
    with untrained("selectors"):
        imagepiece_jax.save(vit, tmp_path / "m")
    loaded = imagepiece_jax.load(tmp_path / "m")
    assert loaded.untrained_kinds
    assert (loaded.label, loaded.model) == (vit.label, vit.model)
    assert not loaded.with_reduction(None).untrained_kinds
    assert not imagepiece_jax.load(tmp_path / "m", reduction="none").untrained_kinds


def test_a_head_that_was_drawn_stays_untrained_until_it_is_trained(tmp_path):
    file = tiny_vit.write(tmp_path / "w.npz", tiny_vit.pretrained().variables)
    fields = {"config": tiny_vit.model().config, "num_classes": 4}
    with untrained() as said:
        vit = imagepiece_jax.load(file, reduction=tiny_vit.EVIT, **fields)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert vit.untrained_kinds == ("head",)
    other = vit.with_reduction("tome:r=3")
    assert other.untrained_kinds and other.label == "tome:r=3 (untrained head)"
    with untrained():
        imagepiece_jax.optimize(vit, batch_size=1)
    with untrained() as said:
        imagepiece_jax.save(vit, tmp_path / "m")
    assert said[0].filename == __file__
    again = imagepiece_jax.load(tmp_path / "m")
    assert again.untrained_kinds == ("head",)
    assert again.label == vit.label
    # What is trained since says so by its numbers; without a head nothing was drawn.
    params = again.variables["params"]
    head = jax.tree.map(lambda leaf: leaf + 1, params["head"])
    variables = {**again.variables, "params": {**params, "head": head}}
    trained = again.with_variables(variables)
    assert trained.untrained_kinds == ()
    imagepiece_jax.save(trained, tmp_path / "trained")
    assert not imagepiece_jax.load(tmp_path / "trained").untrained_kinds
    assert not imagepiece_jax.load(tmp_path / "m", num_classes=0).untrained_kinds
