import dataclasses

import pytest

from imagepiece_jax.models import registry
from imagepiece_jax.models.config import MULTI_LABEL, PROBLEM_TYPES
from imagepiece_jax.weights.description import parse_config
from tests.helpers import named_models
from tests.helpers.config_files import (
    CLASSIFIER_CONFIG,
    CLIP_PIXELS,
    HALF_PIXELS,
    IMAGENET_PIXELS,
    SQUARE_IMAGES,
    TRANSFORMERS_FILES,
    parse_transformers,
)

# Missing fields have the defaults of the file's class.
TRANSFORMERS = {
    "google/vit-base-patch16-224": HALF_PIXELS
    | {"num_heads": 12, "norm_eps": 1e-12, "num_classes": 2}
    | {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"},
    "facebook/dinov2-small": IMAGENET_PIXELS
    | {"num_heads": 6, "norm_eps": 1e-6, "layer_scale": True}
    | {"crop": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
    "openai/clip-vit-large-patch14": CLIP_PIXELS
    | {"num_heads": 16, "norm_eps": 1e-5, "gelu": "quick"}
    | {"patch_bias": False, "pre_norm": True}
    | {"crop": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
    "google/siglip-so400m-patch14-384": HALF_PIXELS
    | {"num_heads": 16, "norm_eps": 1e-6, "gelu": "tanh"}
    | {"class_token": False, "pool": "map"}
    | {"crop": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_form_is_parsed(name):
    config, processor = TRANSFORMERS_FILES[name].values()
    found = parse_config(config, processor)
    vision = config.get("vision_config", config)
    width = vision["hidden_size"]
    expected = {
        "num_classes": 0,
        "image_size": vision.get("image_size", 224),
        "embed_dim": width,
        "mlp_ratio": vision.get("intermediate_size", 4 * width) / width,
        "depth": vision["num_hidden_layers"],
        "patch_size": vision["patch_size"],
        "resize": "bicubic",
        "rule": "transformers",
    }
    assert found.config == named_models.config(None, **expected | TRANSFORMERS[name])
    names = ("tench, Tinca tinca", "goldfish") if found.config.num_classes else None
    assert found.class_names == names
    is_projection = found.head_fields["problem_type"] == "projection"
    assert is_projection == ("clip" in name)


def crop_fields(config):
    """A config's Preprocessing as a dict, without the size."""
    fields = dataclasses.asdict(config.preprocessing)
    del fields["image_size"]
    return fields


@pytest.mark.parametrize("size, gated", [("small", False), ("small_plus", True)])
def test_dinov3s_architecture_equals_the_public_models(size, gated):
    """timm's model pools the patches' mean (facebook/dinov3-vits16-pretrain)."""
    config = {"model_type": "dinov3_vit", "num_register_tokens": 4, "key_bias": False}
    config |= {"hidden_act": "silu" if gated else "gelu", "use_gated_mlp": gated}
    parsed = parse_transformers(config)
    public = registry.model_config(f"vit_{size}_patch16_dinov3_qkvb.lvd1689m").arch
    assert parsed.arch == dataclasses.replace(public, pool="token")
    assert parsed.image_size == 224
    changes = {"rope_theta": 50.0, "key_bias": True, "num_register_tokens": 0}
    arch = parse_transformers(config | changes).arch
    assert (arch.rotary.temperature, arch.key_bias, arch.registers) == (50.0, True, 0)


@pytest.mark.parametrize("size", [256, 354])
def test_a_crop_is_a_share_of_the_resized_image(size):
    """224 / (224 / 354) is slightly below 354. DeiT's processor squashes and crops."""
    processor = {"size": size, "crop_size": 224, "do_center_crop": True, "resample": 3}
    parsed = parse_transformers({"model_type": "deit"}, processor)
    assert int(224 / parsed.preprocessing.crop) == size
    assert crop_fields(parsed) == SQUASHED | {"crop": pytest.approx(224 / size)}


# (file, mean and std, fields of a Preprocessing), by transformers' classes
SQUASHED = {"crop": 1.0, "crop_mode": "squash", "interpolation": "bicubic"}
CENTERED = {"crop_mode": "center"}
SQUASHED |= {"rule": "transformers", "resize": "deit"}
TYPES = ("image_processor_type", "feature_extractor_type")
SIGLIP = {TYPES[0]: "SiglipImageProcessor", "size": 224}
SIGLIP |= {"crop_size": 112, "do_center_crop": True}


@pytest.mark.parametrize(
    "file, images, crop",
    [
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, {}),
        ({"image_mean": 0.4, "resample": 3}, HALF_PIXELS | {"mean": (0.4,) * 3}, {}),
        ({TYPES[1]: "DeiTFeatureExtractor"}, HALF_PIXELS, {"crop": 0.875}),
        ({TYPES[0]: "CLIPImageProcessorFast"}, CLIP_PIXELS, CENTERED),
        (SIGLIP, HALF_PIXELS, {"crop": 0.5} | CENTERED),
        ({"size": 30, "do_center_crop": None}, HALF_PIXELS, {}),
    ],
)
def test_a_processors_missing_fields_are_its_classs(file, images, crop):
    parsed = parse_transformers({"model_type": "vit"}, file)
    assert {"mean": parsed.mean, "std": parsed.std} == images
    bilinear = {*file}.isdisjoint({"resample", *TYPES})
    defaults = SQUASHED | ({"interpolation": "bilinear"} if bilinear else {})
    assert crop_fields(parsed) == defaults | crop


ONE = {"id2label": {"0": "a"}}
TWO = {"id2label": {"0": "a", "1": "b"}}


@pytest.mark.parametrize(
    "fields, task",
    [
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
def test_problem_types_equal_transformers_pipeline(fields, task):
    assert parse_transformers(CLASSIFIER_CONFIG | fields).problem_type == task


def test_a_towers_missing_fields_are_clips():
    config = {"model_type": "clip", "vision_config": {"hidden_size": 96}}
    assert parse_transformers(config).embed_dim == 96
    config["vision_config_dict"] = {"num_hidden_layers": 5}  # the earlier form wins
    parsed = parse_transformers(config)
    assert (parsed.embed_dim, parsed.depth) == (768, 5)


def test_placeholder_labels_are_no_class_names():
    labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    described = parse_config(config | labels, SQUARE_IMAGES)
    assert described.class_names is None
    assert described.config.num_classes == 2
