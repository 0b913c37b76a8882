"""Config files of published models, as on the hub."""

import json
import pathlib

from imagepiece_jax.weights.description import parse_config

IMAGENET_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP_PIXELS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
HALF_PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
TIMM_FILE = pathlib.Path(__file__).parents[1] / "weights" / "timm_dinov2.json"


def timm_file(**fields):
    """config.json of timm/vit_small_patch14_reg4_dinov2.lvd142m, with `fields`."""
    return json.loads(TIMM_FILE.read_text()) | fields


EVA_NAME = "eva02_tiny_patch14_224"
GATED_NAME = "vit_giant_patch14_dinov2"
DISTILLED_NAME = "deit_tiny_distilled_patch16_224"


# A minimal preprocessor_config.json.
SQUARE_IMAGES = {"size": {"height": 224, "width": 224}}


def parse_transformers(config, images=SQUARE_IMAGES):
    return parse_config(config, images).config


VIT_CONFIG = {"model_type": "vit"}
CLASSIFIER_CONFIG = VIT_CONFIG | {"architectures": ["ViTForImageClassification"]}
