"""What config files of published models say, typed as they are on the hub."""

import dataclasses
import json
import pathlib

import pytest

from imagepiece_jax.data import class_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.head import MULTI_LABEL, PROBLEM_TYPES
from imagepiece_jax.weights import timm_config
from imagepiece_jax.weights.described import describe_weights, parse_config
from imagepiece_jax.weights.located import locate_weights
from imagepiece_jax.weights.open_clip_config import parse_open_clip
from tests.helpers import named_models
from tests.helpers.refused_calls import refused

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# {name: {file: its content}} of transformers' models
FILES = json.loads(pathlib.Path(__file__).with_name("described.json").read_text())


def timm(**fields):
    """config.json of timm/vit_small_patch14_reg4_dinov2.lvd142m, with `fields`."""
    return {
        "architecture": "vit_small_patch14_reg4_dinov2",
        "num_classes": 0,
        "num_features": 384,
        "global_pool": "token",
        "pretrained_cfg": {
            "tag": "lvd142m",
            "input_size": [3, 518, 518],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
        },
    } | fields


def test_timms_form():
    """Also from before its fields were grouped."""
    found = parse_config(timm(), {})
    config = found.config
    assert config == registry.model_config("vit_small_patch14_reg4_dinov2.lvd142m")
    assert (config.image_size, config.num_classes) == (518, 0)
    assert {"mean": config.mean, "std": config.std} == IMAGENET
    assert config.preprocessing == Preprocessing(518, crop=1.0)
    assert found.class_names is None
    config = timm()
    assert parse_config(config.pop("pretrained_cfg") | config, {}) == found


USUAL = {"in_chans": 3, "num_classes": 512, "global_pool": "token"}
TUNED = {"tag": "openai", "input_size": [3, 224, 224], **CLIP, "num_classes": 512}


@pytest.mark.parametrize(
    "changes, arguments, tag",
    [
        ({}, {}, ".openai"),
        ({}, USUAL | {"img_size": [224, 224]}, ".openai"),  # what timm itself writes
        ({}, {"img_size": 224}, ".openai"),
        ({"num_classes": 10}, {}, ""),
        ({"mean": [0.5, 0.5, 0.5]}, {}, ""),
        ({}, {"depth": 12}, ""),
        ({}, {"global_pool": "avg"}, ""),
        ({}, {"img_size": [240, 240]}, ""),
    ],
)
def test_the_tag_of_a_fine_tuned_model_is_that_of_its_start(changes, arguments, tag):
    """timm's push_to_hf_hub keeps it, but timm trained with its own, exact, GELU."""
    name = "vit_base_patch16_clip_224"
    config = timm(architecture=name, model_args=arguments)
    del config["num_classes"]
    config["pretrained_cfg"] |= TUNED | changes
    said = parse_config(config, {}).config
    assert said.name == name + tag
    assert said.arch.gelu == ("quick" if tag else "exact")
    assert (said.problem_type == "projection") == bool(tag)
    config["model_args"] = {**arguments, "act_layer": "gelu_tanh"}
    assert parse_config(config, {}).config.arch.gelu == "tanh"


@pytest.mark.parametrize("tag, named", [("augreg_in1k", True), ("my_flowers", False)])
def test_imagenets_names_are_of_weights_that_say_so(tag, named):
    config = timm(architecture="vit_small_patch16_224", num_classes=1000)
    config["pretrained_cfg"] |= {"tag": tag, "input_size": [3, 224, 224]} | HALF
    found = parse_config(config, {})
    assert found.config.name.partition(".")[2] == (tag if named else "")
    assert found.class_names == (class_names.imagenet_names() if named else None)


@pytest.mark.parametrize(
    "form, same",
    [("names", True), ("lemmas", True), ("hub", True), ("synsets", True)]
    + [("lemmas", False)],
)
def test_a_label_map_of_imagenet_has_its_short_names(form, same):
    """timm's and transformers'; with one other class it is that of other weights."""
    synsets, lemmas = zip(*class_names.imagenet_rows(), strict=True)
    forms = {
        "synsets": synsets,
        "lemmas": lemmas,
        "hub": [*lemmas[:517], "crane2", *lemmas[518:]],
        "names": class_names.imagenet_names(),
    }
    names = [*forms[form]]
    if not same:
        names[388] = "my cat"
    config, processor = FILES["google/vit-base-patch16-224"].values()
    labels = {str(i): name for i, name in enumerate(names)}
    wanted = class_names.imagenet_names() if same else tuple(names)
    found = parse_config(config | {"id2label": labels}, processor)
    assert found.class_names == wanted
    config = timm(num_classes=1000, label_names=names)
    assert parse_config(config, {}).class_names == wanted


@pytest.mark.parametrize(
    "fields, names",
    [
        ({"label_names": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"label_names": {"0": "a", "2": "c"}}, ("a", None, "c")),
        (
            {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n2": "cat"}},
            ("n1", "cat", "n3"),
        ),
    ],
)
def test_labels_of_timms_form(fields, names):
    assert parse_config(timm(num_classes=3, **fields), {}).class_names == names


@pytest.mark.parametrize("name", registry.public_models())
def test_the_arguments_of_timms_class_make_its_parts(name):
    images = {"preprocessing": Preprocessing(224)} | HALF
    config = timm_config.build_architecture_config(name, images)
    assert timm_config.apply_model_args(config, {}) == config


def test_names_from_before_timm_0_9():
    images = {"input_size": [3, 224, 224], **HALF}
    former = {"architecture": "vit_small_patch16_224_dino", "num_classes": 0} | images
    found = parse_config(former, {}).config
    assert found.name.startswith("vit_small_patch16_224")
    tuned = former | {"architecture": "vit_base_patch16_224_in21k", "num_classes": 3}
    found = parse_config(tuned, {}).config
    assert (found.name, found.num_classes) == ("vit_base_patch16_224", 3)
    with refused("vit_base_patch16_of_nobody"):
        parse_config(tuned | {"architecture": "vit_base_patch16_of_nobody"}, {})


def test_heads_of_open_clip_are_as_wide_as_it_says():
    vision = {"layers": 1, "width": 160, "head_width": 80}
    found = parse_open_clip({"model_cfg": {"embed_dim": 5, "vision_cfg": vision}})
    assert found.num_heads == 2
    assert found.problem_type == "projection"


@pytest.mark.parametrize("proj", [None, ""])
@pytest.mark.parametrize("size", [32, [32, 48]])
def test_a_trunk_of_open_clip(proj, size):
    """Its head is the projection; OpenCLIP resizes to no square by bicubic alone."""
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": proj}
    vision |= {"timm_pool": "token", "image_size": size}
    images = {"resize_mode": "shortest", "interpolation": "bilinear"}
    file = {"model_cfg": {"embed_dim": 5, "vision_cfg": vision}}
    found = parse_open_clip(file | {"preprocess_cfg": images})
    assert (found.num_classes, found.problem_type) == (5, "projection")
    interpolation = found.preprocessing.interpolation
    assert interpolation == ("bilinear" if size == 32 else "bicubic")


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        ({"img_size": 224}, {"image_size": 224}),
        ({"act_layer": "gelu_tanh", "drop_path_rate": 0.1}, {"gelu": "tanh"}),
        ({"mlp_ratio": 2.0, "embed_dim": 36}, {"mlp_ratio": 2.0, "embed_dim": 36}),
        ({"mlp_ratio": 0.3}, {"mlp_ratio": 115 / 384}),  # timm cuts to whole numbers
    ],
)
def test_arguments_that_leave_the_parts(arguments, wanted):
    found = parse_config(timm(model_args=arguments), {}).config
    usual = {"num_classes": 0, "image_size": 518, "crop": 1.0}
    # Positions are resized as in timm's code, not as those of the published weights.
    arch = Architecture(registers=4, prefix_positions=False, layer_scale=True)
    fields = {"patch_size": 14, "embed_dim": 384, "depth": 12, "num_heads": 6}
    fields |= {"arch": arch} | IMAGENET | usual
    assert found == dataclasses.replace(
        named_models.config(None, **fields | wanted), name=REG4
    )


DEIT = "deit_tiny_patch16_224"
GAP = {"global_pool": "avg"}
TOKENS = {"reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5}
REGISTERS = {"registers": 2, "prefix_positions": False}
MAP = {"global_pool": "map"}
PREFIX = {"pool_include_prefix": True}
EVA = "eva02_tiny_patch14_224"
REG4 = "vit_small_patch14_reg4_dinov2"
GATED = "vit_giant_patch14_dinov2"
DISTILLED = "deit_tiny_distilled_patch16_224"


# (architecture, arguments, fields of Architecture that they change)
@pytest.mark.parametrize(
    "name, arguments, wanted",
    [
        (DEIT, {"embed_dim": 36, "init_values": None}, {}),
        (DEIT, TOKENS, REGISTERS | {"layer_scale": True}),
        (DEIT, GAP, {"pool": "mean", "final_norm": False, "fc_norm": True}),
        (DEIT, GAP | {"fc_norm": False}, {"pool": "mean"}),
        (DEIT, MAP | {"class_token": False}, {"class_token": False, "pool": "map"}),
        (DEIT, MAP | PREFIX, {"pool": "map"} | PREFIX),
        ("test_vit3", {"pool_include_prefix": False}, {"pool_include_prefix": False}),
        # A class whose map always reads the prefix.
        (EVA, MAP, {"pool": "map", "final_norm": True, "fc_norm": False} | PREFIX),
        (DEIT, {"final_norm": False}, {"final_norm": False}),
        *((REG4, {"init_values": v}, {"layer_scale": bool(v)}) for v in (None, 0, 0.1)),
        (
            DEIT,
            {"pre_norm": True, "qkv_bias": False},
            {"pre_norm": True, "patch_bias": False, "qkv_bias": False},
        ),
        # timm would put another function into a gate, has another head to distill,
        # and computes with neither.
        *(
            (GATED, {"act_layer": x}, {"resize": "antialias"})
            for x in ("silu", "swish")
        ),
        (DISTILLED, {"fc_norm": False}, {}),
        # Its name says that the mean has no norm behind it.
        ("vit_base_patch16_gap_224", {"final_norm": False}, {"final_norm": False}),
    ],
)
def test_arguments_that_change_the_parts(name, arguments, wanted):
    config = timm(architecture=name, model_args=arguments, num_classes=0)
    found = parse_config(config, {}).config
    known = registry.model_config(name)
    assert found.arch == dataclasses.replace(known.arch, **wanted)
    for field in ("name", "num_heads", "patch_size", "embed_dim", "depth"):
        assert getattr(found, field) == arguments.get(field, getattr(known, field))


# What a file leaves out is as in the class of its type.
TRANSFORMERS = {
    "google/vit-base-patch16-224": HALF
    | {"num_heads": 12, "norm_eps": 1e-12, "num_classes": 2}
    | {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    "facebook/dinov2-small": IMAGENET
    | {"num_heads": 6, "norm_eps": 1e-6, "layer_scale": True}
    | {"crop": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
    "openai/clip-vit-large-patch14": CLIP
    | {"num_heads": 16, "norm_eps": 1e-5, "gelu": "quick"}
    | {"patch_bias": False, "pre_norm": True}
    | {"crop": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
    "google/siglip-so400m-patch14-384": HALF
    | {"num_heads": 16, "norm_eps": 1e-6, "gelu": "tanh"}
    | {"class_token": False, "pool": "map"}
    | {"crop": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_form(name):
    config, processor = FILES[name].values()
    found = parse_config(config, processor)
    own = config.get("vision_config", config)
    width = own["hidden_size"]
    wanted = {
        "num_classes": 0,
        "image_size": own.get("image_size", 224),
        "embed_dim": width,
        "mlp_ratio": own.get("intermediate_size", 4 * width) / width,
        "depth": own["num_hidden_layers"],
        "patch_size": own["patch_size"],
        "resize": "bicubic",
        "rule": "transformers",
    }
    assert found.config == named_models.config(None, **wanted | TRANSFORMERS[name])
    names = ("tench, Tinca tinca", "goldfish") if found.config.num_classes else None
    assert found.class_names == names
    is_projection = found.head_fields["problem_type"] == "projection"
    assert is_projection == ("clip" in name)


# A preprocessor_config.json that leaves out all else.
SQUARE = {"size": {"height": 224, "width": 224}}


def transformers(config, images=SQUARE):
    return parse_config(config, images).config


def prepared(found):
    """The fields of its Preprocessing but the size."""
    fields = dataclasses.asdict(found.preprocessing)
    del fields["image_size"]
    return fields


@pytest.mark.parametrize("size, gated", [("small", False), ("small_plus", True)])
def test_dinov3s_parts_are_those_of_the_public_model(size, gated):
    """Which timm has with the mean of the patches; facebook/dinov3-vits16-pretrain."""
    config = {
        "model_type": "dinov3_vit",
        "hidden_act": "silu" if gated else "gelu",
        "key_bias": False,
        "num_register_tokens": 4,
        "query_bias": True,
        "rope_theta": 100.0,
        "use_gated_mlp": gated,
    }
    found = transformers(config)
    public = registry.model_config(f"vit_{size}_patch16_dinov3_qkvb.lvd1689m").arch
    assert found.arch == dataclasses.replace(public, pool="token")
    assert found.image_size == 224
    other = {"rope_theta": 50.0, "key_bias": True, "num_register_tokens": 0}
    arch = transformers(config | other).arch
    assert (arch.rotary.temperature, arch.key_bias, arch.registers) == (50.0, True, 0)


@pytest.mark.parametrize("size", [256, 354])
def test_a_crop_gives_the_size_that_it_is_of(size):
    """224 / (224 / 354) is a bit less than 354. DeiT's squashes and crops."""
    processor = {"size": size, "crop_size": 224, "do_center_crop": True, "resample": 3}
    found = transformers({"model_type": "deit"}, processor)
    assert int(224 / found.preprocessing.crop) == size
    assert prepared(found) == SQUASHED | {"crop": pytest.approx(224 / size)}


def test_without_a_processor_nothing_says_how_images_are_normalized():
    with refused("has no preprocessor_config.json", "or give config="):
        parse_config({"model_type": "vit"}, {})


# (file, mean and std, fields of a Preprocessing), by transformers' classes
SQUASHED = {"crop": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
CENTERED = {"crop_mode": "center"}
SQUASHED |= {"rule": "transformers", "resize": "deit"}


@pytest.mark.parametrize(
    "file, images, crop",
    [
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, {}),
        ({"image_mean": 0.4, "resample": 3}, HALF | {"mean": (0.4,) * 3}, {}),
        ({"feature_extractor_type": "DeiTFeatureExtractor"}, HALF, {"crop": 0.875}),
        ({"image_processor_type": "CLIPImageProcessorFast"}, CLIP, CENTERED),
        (
            {"image_processor_type": "SiglipImageProcessor", "size": 224}
            | {"crop_size": 112, "do_center_crop": True},
            HALF,
            {"crop": 0.5} | CENTERED,
        ),
        ({"default_to_square": True, "size": 30, "do_center_crop": None}, HALF, {}),
    ],
)
def test_what_a_processor_leaves_out_is_as_in_its_class(file, images, crop):
    found = transformers({"model_type": "vit"}, file)
    assert {"mean": found.mean, "std": found.std} == images
    bilinear = {*file}.isdisjoint({"resample", *TYPES})
    usual = SQUASHED | ({"interpolation": "bilinear"} if bilinear else {})
    assert prepared(found) == usual | crop


TYPES = ("image_processor_type", "feature_extractor_type")


VIT = {"model_type": "vit"}
CLASSIFIER = VIT | {"architectures": ["ViTForImageClassification"]}
ONE = {"id2label": {"0": "a"}}
TWO = {"id2label": {"0": "a", "1": "b"}}


@pytest.mark.parametrize(
    "fields, task",
    [
        (TWO, "single_label_classification"),
        (TWO | {"problem_type": None}, "single_label_classification"),
        (TWO | {"problem_type": "multi_label_classification"}, MULTI_LABEL),
        (TWO | {"problem_type": "regression"}, "regression"),
        # The pipeline's rule for one class.
        (ONE, MULTI_LABEL),
        (ONE | {"problem_type": "single_label_classification"}, PROBLEM_TYPES[0]),
        # No classifier, unless the weights have a head.
        (ONE | {"architectures": ["ViTModel"]}, PROBLEM_TYPES[0]),
    ],
)
def test_what_logits_mean_is_as_in_transformers_pipeline(fields, task):
    assert transformers(CLASSIFIER | fields).problem_type == task


def test_an_earlier_form_of_a_tower_goes_over_the_later_one():
    """As in CLIPConfig: what it leaves out is the default, not as in vision_config."""
    later = {"hidden_size": 96, "num_hidden_layers": 3}
    config = {"model_type": "clip", "vision_config": later}
    assert transformers(config).embed_dim == 96
    config["vision_config_dict"] = {"num_hidden_layers": 5}
    found = transformers(config)
    assert (found.embed_dim, found.depth) == (768, 5)


def test_placeholders_are_no_names():
    labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    found = parse_config(config | labels, SQUARE)
    assert found.class_names is None
    assert found.config.num_classes == 2


CENTER = {"size": {"shortest_edge": 256}}
CROPPED = {"crop_size": 384, "do_center_crop": True}
LONGEST = {"shortest_edge": 224, "longest_edge": 448}
SIGLIP = {"model_type": "siglip_vision_model"}
QUANTIZED = {"quantization_config": {"load_in_8bit": True}}
BIASES = "query_bias, key_bias, value_bias"
DINOV3 = {"model_type": "dinov3_vit"}
ROTARY = "vit_small_patch16_dinov3"
REGISTER = {"reg_tokens": 1}
NORM = {"fc_norm": True}
GELU = {"act_layer": "gelu"}


def with_arguments(**arguments):
    return timm(model_args=arguments)


@pytest.mark.parametrize(
    "config, processor, field",
    [
        ({"model_type": "resnet"}, {}, "model_type"),
        ({"model_type": ["vit"]}, {}, "model_type"),
        (CLASSIFIER | {"problem_type": "multi"}, {}, "problem_type"),
        (VIT | QUANTIZED, {}, "quantization_config"),
        (SIGLIP | {"vision_use_head": False}, {}, "vision_use_head"),
        (DINOV3 | {"value_bias": False}, {}, BIASES),
        (DINOV3 | {"use_gated_mlp": True}, {}, "hidden_act"),
        (VIT | {"hidden_size": "768"}, {}, "hidden_size"),
        (VIT | {"num_channels": 4}, {}, "num_channels"),
        (VIT | {"image_size": [224, 256]}, {}, "a size"),
        (VIT, {"size": 224, "resample": 0}, "resample"),
        (VIT, {"rescale_factor": 1 / 127.5}, "rescale_factor"),
        (VIT, {"do_rescale": False}, "do_rescale"),
        (VIT, {"size": 224, "do_center_crop": True}, "size"),
        (VIT, CENTER | CROPPED, "size"),
        (VIT, {"size": 224, "do_resize": "no"}, "do_resize"),
        (VIT, {"do_resize": False} | CROPPED, "do_resize"),
        (VIT, {"size": LONGEST, "do_resize": True}, "size"),
        (VIT, {"image_processor_type": "Other"}, "image_processor_type"),
        (DINOV3, {"size": 224, "resample": 3}, "resample"),
        (timm(architecture="vit_smal_patch16_224"), {}, "vit_smal_patch16_224"),
        (with_arguments(qk_norm=True), {}, "model_args.qk_norm"),
        (with_arguments(act_layer="relu"), {}, "model_args.act_layer"),
        (timm(architecture=ROTARY, model_args=REGISTER), {}, "model_args"),
        (with_arguments(global_pool="max"), {}, "model_args.global_pool"),
        (timm(architecture=GATED, model_args=GELU), {}, "model_args.act_layer"),
        (timm(architecture=DISTILLED, model_args=NORM), {}, "model_args.fc_norm"),
    ],
)
def test_what_no_model_here_has(config, processor, field):
    with refused(field) as error:
        parse_config(config, processor or SQUARE)
    file = "config.json" if not processor else "preprocessor_config.json"
    assert str(error.value).startswith(f"{file}: ")


def test_a_config_without_a_field_or_with_another_type():
    eps = VIT | {"layer_norm_eps": 10**309}  # beyond all floats
    configs = {"has no model_type": {}, "has no input_size": timm(pretrained_cfg={})}
    configs["has an unknown field: int too"] = eps
    for problem, config in configs.items():
        with refused(f"config.json {problem}"):
            parse_config(config, SQUARE)


@pytest.mark.parametrize(
    "field, value",
    [("act_kwargs", {"inplace": True}), ("norm_kwargs", {"bias": False})],
)
def test_options_of_open_clip_that_no_model_has(field, value):
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": {field: value}}}
    with refused(f"vision_cfg.{field} has {[*value][0]}="):
        parse_open_clip(config)


def test_a_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224}')
    with refused(f"{tmp_path / 'config.json'}: model_type is "):
        describe_weights(locate_weights(tmp_path))


def test_a_rotary_model_of_timm_says_its_own_pool():
    """timm writes global_pool whatever the model; only the head may be another."""
    config = timm(architecture=EVA, model_args={"global_pool": "avg"})
    own = registry.model_config(EVA).arch
    assert parse_config(config, {}).config.arch == own
    config["model_args"] = {"global_pool": "token"}
    found = parse_config(config, {}).config.arch
    assert (found.pool, found.final_norm, found.fc_norm) == ("token", True, False)
    assert found.rotary == own.rotary
