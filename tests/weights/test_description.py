import pytest

from imagepiece_jax.data import class_names
from imagepiece_jax.weights.description import parse_config
from imagepiece_jax.weights.open_clip_config import parse_open_clip
from tests.helpers import config_files
from tests.helpers.config_files import SQUARE_IMAGES, VIT_CONFIG, timm_file
from tests.helpers.refused_calls import refused

CLASSIFIER = config_files.CLASSIFIER_CONFIG
GATED = config_files.GATED_NAME
DISTILLED = config_files.DISTILLED_NAME
SYNSETS, LEMMAS = zip(*class_names.imagenet_rows(), strict=True)


ON_THE_HUB = [*LEMMAS[:517], "crane2", *LEMMAS[518:]]
CHANGED = [*LEMMAS[:388], "my cat", *LEMMAS[389:]]


@pytest.mark.parametrize(
    "names, is_imagenet", [(SYNSETS, True), (ON_THE_HUB, True), (CHANGED, False)]
)
def test_imagenets_label_maps_get_short_names(names, is_imagenet):
    expected = class_names.imagenet_names() if is_imagenet else tuple(names)
    labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
    described = parse_config(CLASSIFIER | labels, SQUARE_IMAGES)
    assert described.class_names == expected
    config = timm_file(num_classes=1000, label_names=names)
    assert parse_config(config, {}).class_names == expected


def parse_vision(preprocess_cfg=None, **vision):
    file = {"model_cfg": {"embed_dim": 5, "vision_cfg": vision}}
    config = parse_open_clip(file | {"preprocess_cfg": preprocess_cfg})
    assert (config.num_classes, config.problem_type) == (5, "projection")
    return config


def test_open_clips_head_width_gives_the_number_of_heads():
    assert parse_vision(layers=1, width=160, head_width=80).num_heads == 2


@pytest.mark.parametrize("proj", [None, ""])
@pytest.mark.parametrize("size", [32, [32, 48]])
def test_open_clips_trunk_has_a_projection(proj, size):
    """OpenCLIP resizes to a rectangle by bicubic interpolation alone."""
    trunk = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"}
    images = {"resize_mode": "shortest", "interpolation": "bilinear"}
    config = parse_vision(images, timm_proj=proj, image_size=size, **trunk)
    interpolation = config.preprocessing.interpolation
    assert interpolation == ("bilinear" if size == 32 else "bicubic")


CENTER = {"size": {"shortest_edge": 256}}
CROPPED = {"crop_size": 384, "do_center_crop": True}
LONGEST = {"shortest_edge": 224, "longest_edge": 448}
SIGLIP = {"model_type": "siglip_vision_model"}
QUANTIZED = {"quantization_config": {"load_in_8bit": True}}
BIASES = "query_bias, key_bias, value_bias"
DINOV3 = {"model_type": "dinov3_vit"}


def with_arguments(name="vit_small_patch14_reg4_dinov2", **arguments):
    return timm_file(architecture=name, model_args=arguments)


@pytest.mark.parametrize(
    "config, processor, field",
    [
        ({}, {}, "it has no model_type"),
        (timm_file(pretrained_cfg={}), {}, "it has no input_size"),
        # beyond all floats
        (VIT_CONFIG | {"layer_norm_eps": 10**309}, {}, "it has an unknown field: int"),
        ({"model_type": "resnet"}, {}, "model_type"),
        (CLASSIFIER | {"problem_type": "multi"}, {}, "problem_type"),
        (VIT_CONFIG | QUANTIZED, {}, "quantization_config"),
        (SIGLIP | {"vision_use_head": False}, {}, "vision_use_head"),
        (DINOV3 | {"value_bias": False}, {}, BIASES),
        (DINOV3 | {"use_gated_mlp": True}, {}, "hidden_act"),
        (VIT_CONFIG | {"num_channels": 4}, {}, "num_channels"),
        (VIT_CONFIG | {"image_size": [224, 256]}, {}, "a size"),
        (VIT_CONFIG, {"size": 224, "resample": 0}, "resample"),
        (VIT_CONFIG, {"rescale_factor": 1 / 127.5}, "rescale_factor"),
        (VIT_CONFIG, {"do_rescale": False}, "do_rescale"),
        (VIT_CONFIG, {"size": 224, "do_center_crop": True}, "size"),
        (VIT_CONFIG, CENTER | CROPPED, "size"),
        (VIT_CONFIG, {"size": 224, "do_resize": "no"}, "do_resize"),
        (VIT_CONFIG, {"do_resize": False} | CROPPED, "do_resize"),
        (VIT_CONFIG, {"size": LONGEST, "do_resize": True}, "size"),
        (VIT_CONFIG, {"image_processor_type": "Other"}, "image_processor_type"),
        (DINOV3, {"size": 224, "resample": 3}, "resample"),
        (timm_file(architecture="vit_smal_patch16_224"), {}, "vit_smal_patch16_224"),
        (with_arguments(qk_norm=True), {}, "model_args.qk_norm"),
        (with_arguments(act_layer="relu"), {}, "model_args.act_layer"),
        (with_arguments("vit_small_patch16_dinov3", reg_tokens=1), {}, "model_args"),
        (with_arguments(global_pool="max"), {}, "model_args.global_pool"),
        (with_arguments(GATED, act_layer="gelu"), {}, "model_args.act_layer"),
        (with_arguments(DISTILLED, fc_norm=True), {}, "model_args.fc_norm"),
    ],
)
def test_an_unsupported_field_is_named(config, processor, field):
    with refused(field) as error:
        parse_config(config, processor or SQUARE_IMAGES)
    file = "config.json" if not processor else "preprocessor_config.json"
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.parametrize("field", ["act_kwargs", "norm_kwargs"])
def test_unsupported_options_of_open_clip_are_named(field):
    with refused(f"vision_cfg.{field} is ['inplace']"):
        parse_vision(**{field: {"inplace": True}})
