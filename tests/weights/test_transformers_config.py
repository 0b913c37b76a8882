import dataclasses
import math

import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import MULTI_LABEL, PROBLEM_TYPES
from imagepiece_jax.weights import transformers_config
from imagepiece_jax.weights.description import parse_config
from tests.helpers import config_files, named_models
from tests.helpers.config_files import CLASSIFIER_CONFIG, HALF_PIXELS, SQUARE_IMAGES

# Transformers' resizing of images to a square.
SQUASH = {"crop": 1.0, "crop_mode": "squash"}
LINEAR = {"interpolation": "bilinear"}
SMALL = {"hidden_size": 384, "num_attention_heads": 6}
DINOV3 = {"model_type": "dinov3_vit", **SMALL}
GATED = {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 4}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
LARGE |= {"num_hidden_layers": 24, "patch_size": 14}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
SO400M |= {"num_hidden_layers": 27, "patch_size": 14, "image_size": 384}


IMAGENET = {f"image_{k}": v for k, v in config_files.IMAGENET_PIXELS.items()}
# {public model: config.json and preprocessor_config.json, where missing fields have the
# defaults of the file's class; parts and images that are transformers' own}
PUBLIC = {
    "vit_small_patch14_dinov2.lvd142m": (
        {"model_type": "dinov2", "image_size": 518, **SMALL},
        {"size": {"shortest_edge": 256}} | IMAGENET,
        {"resize": "bicubic"},
        {"crop": 0.875},
    ),
    "vit_large_patch14_clip_224.openai": (
        {"model_type": "clip", "text_config": SMALL} | {"vision_config": LARGE},
        {"size": 224, "crop_size": 224},
        {"resize": "bicubic"},
        {},
    ),
    "vit_so400m_patch14_siglip_384.webli": (
        {"model_type": "siglip", "text_config": SMALL} | {"vision_config": SO400M},
        {"size": {"height": 384, "width": 384}},
        {"resize": "bicubic"},
        SQUASH,
    ),
    "vit_small_patch16_dinov3_qkvb.lvd1689m": (
        DINOV3 | {"key_bias": True},
        SQUARE_IMAGES,
        {"pool": "token", "key_bias": True, "registers": 0},
        SQUASH | LINEAR | {"image_size": 224},
    ),
    "vit_small_plus_patch16_dinov3_qkvb.lvd1689m": (
        DINOV3 | GATED,
        SQUARE_IMAGES,
        {"pool": "token"},  # timm's model pools the patches' mean
        SQUASH | LINEAR | {"image_size": 224},
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_file_describes_the_public_model(name):
    file, processor, parts, images = PUBLIC[name]
    described = parse_config(file, processor)
    is_projection = described.head_fields["problem_type"] == "projection"
    assert is_projection == ("clip" in name)
    head = {"num_classes": 0, "problem_type": PROBLEM_TYPES[0]}
    changes = {"rule": "transformers", **images, **head}
    public = named_models.config(name, arch=parts, **changes)
    assert dataclasses.replace(described.config, name=name) == public


CENTERED = {"crop_mode": "center"}
TYPES = ("image_processor_type", "feature_extractor_type")
SIGLIP = {TYPES[0]: "SiglipImageProcessor", "size": 224}
SIGLIP |= {"crop_size": 112, "do_center_crop": True}
DEIT = {TYPES[1]: "DeiTFeatureExtractor"}


# (preprocessor_config.json; mean and std; fields of a Preprocessing)
@pytest.mark.parametrize(
    "file, pixels, fields",
    [
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, LINEAR),
        ({"image_mean": 0.4, "resample": 3}, HALF_PIXELS | {"mean": (0.4,) * 3}, {}),
        ({"size": 30, "do_center_crop": None}, HALF_PIXELS, LINEAR),
        ({TYPES[0]: "CLIPImageProcessorFast"}, config_files.CLIP_PIXELS, CENTERED),
        (SIGLIP, HALF_PIXELS, CENTERED | {"crop": 0.5}),
        # DeiT's processor squashes and crops. 224 / (224 / 354) is slightly below 354.
        (DEIT, HALF_PIXELS, {"crop": 0.875}),
        (DEIT | {"size": 354}, HALF_PIXELS, {"crop": math.nextafter(224 / 354, 0)}),
    ],
)
def test_a_processors_missing_fields_are_its_classs(file, pixels, fields):
    parsed = config_files.parse_transformers(config_files.VIT_CONFIG, file)
    assert {"mean": parsed.mean, "std": parsed.std} == pixels
    usual = SQUASH | {"interpolation": "bicubic", "rule": "transformers"}
    assert parsed.preprocessing == Preprocessing(224, **usual | fields)


ONE = {"id2label": {"0": "a"}}
TWO = {"id2label": {"0": "a", "1": "b"}}


@pytest.mark.parametrize(
    "fields, task",
    [
        (TWO | {"problem_type": None}, "single_label_classification"),
        (TWO | {"problem_type": "regression"}, "regression"),
        # The pipeline's rule for one class.
        (ONE, MULTI_LABEL),
        (ONE | {"problem_type": "single_label_classification"}, PROBLEM_TYPES[0]),
        # No classifier, unless the weights have a head.
        (ONE | {"architectures": ["ViTModel"]}, PROBLEM_TYPES[0]),
    ],
)
def test_problem_types_equal_transformers_pipeline(fields, task):
    parsed = config_files.parse_transformers(CLASSIFIER_CONFIG | fields)
    assert parsed.problem_type == task


def test_a_towers_missing_fields_are_clips():
    config = {"model_type": "clip", "vision_config": {"hidden_size": 96}}
    assert config_files.parse_transformers(config).embed_dim == 96
    config["vision_config_dict"] = {"num_hidden_layers": 5}  # the earlier form wins
    parsed = config_files.parse_transformers(config)
    assert (parsed.embed_dim, parsed.depth) == (768, 5)


def test_placeholder_labels_are_no_class_names():
    labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    described = parse_config(CLASSIFIER_CONFIG | labels, SQUARE_IMAGES)
    assert described.class_names is None
    assert described.config.num_classes == 2


@pytest.mark.parametrize("field", sorted(transformers_config.COUNT_FIELDS))
def test_a_wrong_count_is_named_as_in_the_file(field):
    for count in (0, 1.5, "12", None):
        with pytest.raises(InputError, match=f"config.json: {field} is {count!r}; "):
            config_files.parse_transformers(CLASSIFIER_CONFIG | {field: count})
