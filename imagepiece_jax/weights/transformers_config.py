"""Read transformers' config.json and preprocessor_config.json as a ViTConfig.

transformers writes no field with its model type's default value. So this file lists the
defaults of its configuration classes and image processors (version 5.24).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.data import class_names
from imagepiece_jax.data.normalize import Normalization
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import config
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.weights.folder_files import JsonFields
from imagepiece_jax.weights.open_clip_config import CLIP_MEAN, CLIP_STD
from imagepiece_jax.weights.timm_config import GATE_ACTIVATIONS

# transformers' activations by name. Activations of one kind differ only in rounding.
TANH_GELU_NAMES = """
    gelu_pytorch_tanh gelu_python_tanh gelu_new gelu_fast gelu_accurate
""".split()
TRANSFORMERS_GELUS = dict.fromkeys(TANH_GELU_NAMES, "tanh") | dict(
    gelu="exact", gelu_python="exact", quick_gelu="quick"
)
# Whole numbers of at least 1.
COUNT_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads")
COUNT_FIELDS += ("intermediate_size",)
INTERPOLATION_OF_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's constants
RESCALE_FACTOR = 1 / 255
# Files round RESCALE_FACTOR.
RESCALE_RANGE = (RESCALE_FACTOR - 1e-6, RESCALE_FACTOR + 1e-6)
# Quantized tensors mean nothing without this config, which is refused.
UNQUANTIZED_FIELDS = {"quantization_config": None}


@dataclasses.dataclass(frozen=True)
class ModelType:
    """A model type of transformers."""

    defaults: dict[str, Any]  # of the configuration class
    resize: str  # how transformers' code interpolates positions
    processor_name: str  # image processor for a file without a processor name
    # fields of an Architecture, or a function that makes them of the file's settings
    parts: Mapping[str, Any] | Callable[[JsonFields], Mapping[str, Any]]
    # fields with the only supported values
    fixed_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    has_labels: bool = True  # False: id2label says nothing, and a head is a projection
    classifier_pool: str | None = None  # of a classifier; None: as without a classifier


def _make_dinov2_parts(settings):
    registers = settings.get("num_register_tokens", 0)
    return {
        "registers": registers,
        "prefix_positions": not registers,
        "layer_scale": True,
        "mlp": "swiglu" if settings["use_swiglu_ffn"] else "gelu",
    }


def _make_dinov3_parts(settings):
    """Allow all biases, all but the key's, or none."""
    biases = (settings["query_bias"], settings["key_bias"], settings["value_bias"])
    allowed_biases = [(True, True, True), (True, False, True), (False, False, False)]
    check_choice("(query_bias, key_bias, value_bias)", biases, allowed_biases)
    return {
        "registers": settings["num_register_tokens"],
        "positions": False,
        "rotary": Rotary("center", float(settings["rope_theta"]), planes="halves"),
        "qkv_bias": settings["query_bias"],
        # key_bias=False means that only keys lack a bias. Without any bias it stays
        # True, the default.
        "key_bias": settings["key_bias"] or not settings["query_bias"],
        "layer_scale": True,
        "mlp": "swiglu" if settings["use_gated_mlp"] else "gelu",
    }


_BASE_FIELDS = (
    dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
    | dict(image_size=224, patch_size=16, num_channels=3)
    | dict(hidden_act="gelu", layer_norm_eps=1e-6)
)
_WIDE_FIELDS = _BASE_FIELDS | dict(intermediate_size=3072)
_VIT_FIELDS = _WIDE_FIELDS | dict(layer_norm_eps=1e-12, qkv_bias=True)
_DINOV2_FIELDS = _BASE_FIELDS | dict(mlp_ratio=4, use_swiglu_ffn=False, qkv_bias=True)
_REGISTER_FIELDS = _DINOV2_FIELDS | {"num_register_tokens": 4}
_CLIP_FIELDS = _WIDE_FIELDS | dict(
    patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5
)
_SIGLIP_FIELDS = _WIDE_FIELDS | dict(hidden_act="gelu_pytorch_tanh")
_DINOV3_FIELDS = (
    _BASE_FIELDS
    | dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    | dict(layer_norm_eps=1e-5, use_gated_mlp=False, num_register_tokens=0)
    | dict(rope_theta=100.0, query_bias=True, key_bias=False, value_bias=True)
)
_DINOV3_BIASES = {"proj_bias": True, "mlp_bias": True}
_CLIP_PARTS = {"patch_bias": False, "pre_norm": True}
_SIGLIP_PARTS = {"class_token": False, "pool": "map"}
MODEL_TYPES = {
    "vit": ModelType(_VIT_FIELDS, "bicubic", "ViT", {}),
    "deit": ModelType(_VIT_FIELDS, "bicubic", "DeiT", {"dist_token": True}),
    "dinov2": ModelType(
        _DINOV2_FIELDS | {"patch_size": 14}, "bicubic", "Bit", _make_dinov2_parts
    ),
    "dinov2_with_registers": ModelType(
        _REGISTER_FIELDS, "antialias", "Bit", _make_dinov2_parts
    ),
    "clip_vision_model": ModelType(
        _CLIP_FIELDS, "bicubic", "CLIP", _CLIP_PARTS, has_labels=False
    ),
    "siglip_vision_model": ModelType(
        _SIGLIP_FIELDS, "bicubic", "Siglip", _SIGLIP_PARTS, classifier_pool="mean"
    ),
    "dinov3_vit": ModelType(
        _DINOV3_FIELDS, "antialias", "DINOv3ViT", _make_dinov3_parts, _DINOV3_BIASES
    ),
}
# Image-text models, of which only the vision tower is read: {type: vision type}.
VISION_TYPES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}

# Defaults of image processors, by the start of their names. crop_size None: no crop.
_SWITCHES = dict(do_resize=True, do_rescale=True, do_normalize=True) | dict.fromkeys(
    ("do_center_crop", "do_pad", "default_to_square"), False
)
_COMMON_FIELDS = _SWITCHES | dict(
    rescale_factor=RESCALE_FACTOR, crop_size=None, resample=3
)
_HALF_NORMALIZATION = dict(image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
_IMAGENET_NORMALIZATION = dict(
    image_mean=config.IMAGENET_MEAN, image_std=config.IMAGENET_STD
)
_CLIP_NORMALIZATION = dict(image_mean=CLIP_MEAN, image_std=CLIP_STD)
_CROPPED_IMAGES = _COMMON_FIELDS | dict(do_center_crop=True, crop_size=224)
_SQUARE_IMAGES = _COMMON_FIELDS | dict(
    size={"height": 224, "width": 224}, default_to_square=True
)
_LARGER_IMAGES = dict(size={"height": 256, "width": 256}, default_to_square=True)
_CLIP_IMAGES = _CROPPED_IMAGES | _CLIP_NORMALIZATION | dict(size={"shortest_edge": 224})
PROCESSOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _SQUARE_IMAGES | _HALF_NORMALIZATION | dict(resample=2),
    "DeiT": _CROPPED_IMAGES | _HALF_NORMALIZATION | _LARGER_IMAGES,
    "Bit": _CLIP_IMAGES,
    "CLIP": _CLIP_IMAGES,
    "Siglip": _SQUARE_IMAGES | _HALF_NORMALIZATION | dict(default_to_square=False),
    "DINOv3ViT": _SQUARE_IMAGES | _IMAGENET_NORMALIZATION | dict(resample=2),
}


def parse_transformers(
    config_fields: JsonFields, image_settings: tuple[Normalization, dict[str, Any]]
) -> dict[str, Any]:
    """Parse a config.json into fields of a Description.

    image_settings: from `parse_image_processor`
    """
    normalization, preprocessing_fields = image_settings
    model_type = MODEL_TYPES[find_vision_type(config_fields)]
    vision_fields = _select_vision_fields(config_fields)
    _check_fixed_fields(UNQUANTIZED_FIELDS, config_fields)
    _check_fixed_fields(model_type.fixed_fields, vision_fields)
    settings = _complete_fields(vision_fields, model_type.defaults)
    for field in COUNT_FIELDS:
        if field in settings:
            check_range(field, settings[field], 1, whole=True)
    check_choice("num_channels", settings["num_channels"], [3])
    # transformers names a classifier in "architectures" only when it saves the model,
    # so other files may have a head without a name here.
    architectures = config_fields.get("architectures") or ()
    is_classifier = any("ImageClass" in name for name in architectures)
    id2label = (model_type.has_labels and config_fields.get("id2label")) or {}
    # The rule of transformers' pipeline
    problem_type = config_fields.get("problem_type")
    if problem_type is None:
        problem_type = config.MULTI_LABEL if len(id2label) == 1 else config.SINGLE_LABEL
    check_choice("problem_type", problem_type, config.PROBLEM_TYPES)
    if not model_type.has_labels and not is_classifier:
        problem_type = config.PROJECTION
    head_fields = {"num_classes": len(id2label), "problem_type": problem_type}
    architecture = _build_architecture(model_type, settings, is_classifier)
    if architecture.pool == "map":
        _check_fixed_fields({"vision_use_head": True}, vision_fields)
    image_size = _read_square_side(settings["image_size"])
    width = settings["hidden_size"]
    hidden_width = settings.get("intermediate_size")
    if hidden_width is None:  # DINOv2's types
        hidden_width = int(width * settings["mlp_ratio"])
        if settings["use_swiglu_ffn"]:
            # transformers' Dinov2SwiGLUFFN: two thirds, rounded up to a multiple of 8
            hidden_width = (int(hidden_width * 2 / 3) + 7) // 8 * 8
    label_names = None
    if id2label:
        # None: a class without an entry
        labels = [*map(str, range(len(id2label)))]
        label_names = [id2label.get(label) for label in labels]
        if label_names == [f"LABEL_{label}" for label in labels]:
            label_names = None  # transformers' placeholders
        else:
            # Names give names: `or ()` is for the type checker.
            label_names = tuple(class_names.shorten_imagenet_names(label_names) or ())
    vit_config = config.ViTConfig(
        embed_dim=width,
        depth=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        patch_size=_read_square_side(settings["patch_size"]),
        mlp_ratio=hidden_width / width,
        arch=architecture,
        num_classes=0,
        preprocessing=Preprocessing(image_size, **preprocessing_fields),
        **vars(normalization),
    )
    if is_classifier:
        vit_config = dataclasses.replace(vit_config, **head_fields)
    return {
        "config": vit_config,
        "class_names": label_names,
        "head_fields": head_fields,
    }


def _complete_fields(file_fields, defaults):
    """Select the fields that have defaults, with the file's values."""
    return {field: file_fields.get(field, defaults[field]) for field in defaults}


def _build_architecture(model_type, settings, is_classifier):
    gelu_of_activation = TRANSFORMERS_GELUS
    if settings.get("use_gated_mlp"):
        gelu_of_activation = GATE_ACTIVATIONS
    check_choice("hidden_act", settings["hidden_act"], gelu_of_activation)
    parts = model_type.parts
    if not isinstance(parts, Mapping):
        parts = parts(settings)
    if is_classifier and model_type.classifier_pool:
        parts = {**parts, "pool": model_type.classifier_pool}
    usual_parts = {"qkv_bias": settings.get("qkv_bias", True)}
    return Architecture(
        gelu=gelu_of_activation[settings["hidden_act"]],
        norm_eps=float(settings["layer_norm_eps"]),
        resize=model_type.resize,
        **(usual_parts | parts),
    )


def _select_vision_fields(config_fields):
    """Select the vision tower's fields in an image-text model, else all fields."""
    if config_fields["model_type"] not in VISION_TYPES:
        return config_fields
    # Before version 4.30, vision_config_dict takes precedence over vision_config.
    fields = config_fields.get("vision_config_dict")
    if fields is None:
        fields = config_fields.get("vision_config") or {}  # {}: all defaults
    return fields


def _check_fixed_fields(fixed_fields, file_fields):
    for field, value in fixed_fields.items():
        check_choice(field, file_fields.get(field, value), [value])


def parse_image_processor(
    image_processor_fields: JsonFields, model_type: str
) -> tuple[Normalization, dict[str, Any]]:
    """Parse a preprocessor_config.json: (normalization, fields of a Preprocessing).

    Missing fields have the image processor's defaults.
    """
    processor_name = _find_processor_name(image_processor_fields, model_type)
    if processor_name == "CLIP":  # this field would change the size in CLIP's processor
        _check_fixed_fields({"use_square_size": False}, image_processor_fields)
    defaults = PROCESSOR_DEFAULTS[processor_name]
    settings = _complete_fields(image_processor_fields, defaults)
    for field in _SWITCHES:
        check_choice(field, settings[field], [True, False, None])
        settings[field] = bool(settings[field])
    check_choice("do_rescale", settings["do_rescale"], [True])
    check_choice("do_pad", settings["do_pad"], [False])
    check_range("rescale_factor", settings["rescale_factor"], *RESCALE_RANGE)
    if not settings["do_normalize"]:
        settings |= dict(image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    for field in ("image_mean", "image_std"):
        if isinstance(settings[field], int | float):  # a number is for all channels
            settings[field] = (settings[field],) * 3
    normalization = Normalization(settings["image_mean"], settings["image_std"])
    return normalization, _make_preprocessing_fields(settings, processor_name)


def _find_processor_name(image_processor_fields, model_type):
    """Find the image processor of a file, one of PROCESSOR_DEFAULTS."""
    field = "image_processor_type"
    if image_processor_fields.get(field) is None:
        field = "feature_extractor_type"  # the field's name up to version 4.26
    type_name = image_processor_fields.get(field)
    if type_name is None:
        return MODEL_TYPES[model_type].processor_name
    processor_names = {f"{name}ImageProcessor": name for name in PROCESSOR_DEFAULTS}
    class_name = re.sub("FeatureExtractor$", "ImageProcessor", str(type_name))
    class_name = re.sub("(Fast|Pil)$", "", class_name)  # other code, same defaults
    check_choice(field, class_name, processor_names)
    return processor_names[class_name]


def _make_preprocessing_fields(settings, processor_name):
    """Translate an image processor's settings into fields of a Preprocessing."""
    size = settings["size"]
    has_crop = settings["do_center_crop"]
    if not settings["do_resize"]:
        if has_crop:
            raise InputError("do_center_crop is True, but do_resize is False")
        return {"resize": "none"}
    resample = settings["resample"]
    check_choice("resample", resample, INTERPOLATION_OF_RESAMPLE)
    interpolation = INTERPOLATION_OF_RESAMPLE[resample]
    if processor_name == "DINOv3ViT" and interpolation == "bicubic":
        # DINOv3's image processor then makes pixels below 0 and above 1.
        raise InputError(f"resample is {resample}, bicubic, unsupported for DINOv3")
    side, is_squashed = _read_resized_side(size, settings["default_to_square"])
    crop_size = settings["crop_size"]
    # whether all images get one size
    has_same_size = crop_size is not None if has_crop else is_squashed
    crop_share = 1.0
    if has_crop and has_same_size:
        crop_side = _read_square_side(crop_size)
        crop_share = crop_side / side
        # int(crop_side / crop_share), the resized side, must be `side` again.
        if int(crop_side / crop_share) != side:
            crop_share = math.nextafter(crop_share, 0)
    if not has_same_size or crop_share > 1 or not side:
        mistake = (
            f"size is {size!r}, do_center_crop {has_crop}, crop_size {crop_size!r}"
        )
        raise InputError(f"{mistake}; give a height and a width, or a smaller crop")
    return {
        "crop": crop_share,
        "crop_mode": "squash" if is_squashed else "center",
        "interpolation": interpolation,
        "rule": "transformers",
    }


def find_vision_type(config_fields: JsonFields) -> str:
    """Return the model type, one of MODEL_TYPES: an image-text model's vision type."""
    model_type = config_fields["model_type"]
    check_choice("model_type", model_type, [*MODEL_TYPES, *VISION_TYPES])
    if model_type not in VISION_TYPES:
        return model_type
    vision_type = VISION_TYPES[model_type]
    tower_type = _select_vision_fields(config_fields).get("model_type", vision_type)
    check_choice("vision_config.model_type", tower_type, [vision_type, model_type])
    return vision_type


def _read_resized_side(size, default_to_square):
    """Read a processor's size: (pixels, whether both sides are resized to them)."""
    # A number alone may be the shortest edge's.
    if not isinstance(size, Mapping):
        return _read_square_side(size), default_to_square or not isinstance(size, int)
    sides = {name: value for name, value in size.items() if value is not None}
    if {*sides} == {"shortest_edge"}:
        return _read_square_side(sides["shortest_edge"]), False
    if {*sides} != {"height", "width"}:
        allowed = "shortest_edge, or height and width"
        raise InputError(f"size is {size}; it must be {allowed}")
    return _read_square_side(sides), True


def _read_square_side(size):
    """Read a square's side from a number, a pair, or {"height", "width"}."""
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    if isinstance(size, int):
        return size
    height, width = size
    if height != width or not isinstance(height, int):
        raise InputError(f"a size is {tuple(size)}; it must be a square")
    return height
