"""transformers' config.json and preprocessor_config.json, read as HubConfigs.

A file lacks the fields that have the default of their model type, so these defaults
stand here (transformers' configuration classes, version 5.23).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from imagepiece_jax.common.fields import is_integer
from imagepiece_jax.data import class_names
from imagepiece_jax.errors import InputError, one_of
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.pretrained.hub import HubConfig
from imagepiece_jax.pretrained.timm_config import SILUS
from imagepiece_jax.pretrained.towers import GELUS, HOSTS

Fields = Mapping[str, Any]  # of a JSON file
COUNTS = {"hidden_size", "num_hidden_layers", "num_attention_heads"}  # from 1
COUNTS |= {"intermediate_size"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
RESCALE = 1 / 255


@dataclasses.dataclass(frozen=True)
class ModelType:
    """A model type of transformers."""

    fields: Fields  # the defaults of its configuration class
    resize: str  # how its code interpolates positions
    resample: int  # its image processor's own
    square: bool = True  # whether one number as a size means both sides
    # all parts, for a type whose tensors do not show them, nor an image size
    arch: Callable[[Fields], Architecture] | None = None
    inner: Architecture | None = None  # parts up to an earlier block than the last


def _hidden(fields):
    """Width of the hidden layer of an MLP."""
    if "intermediate_size" in fields:
        return fields["intermediate_size"]
    hidden = int(fields["hidden_size"] * fields["mlp_ratio"])
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if fields["use_swiglu_ffn"] else hidden


def _dinov3(fields):
    return Architecture(
        registers=fields["num_register_tokens"],
        positions=False,
        rotary=Rotary("center", float(fields["rope_theta"]), planes="halves"),
        qkv_bias=fields["query_bias"],
        key_bias=fields["key_bias"] or not fields["query_bias"],
        layer_scale=True,
        mlp="swiglu" if fields["use_gated_mlp"] else "gelu",
    )


_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
_BASE |= dict(image_size=224, patch_size=16, num_channels=3)
_WIDE = _BASE | dict(intermediate_size=3072)
_VIT = _WIDE | dict(hidden_act="gelu", layer_norm_eps=1e-12)
_DINOV2 = _BASE | dict(hidden_act="gelu", layer_norm_eps=1e-6)
_DINOV2 |= dict(mlp_ratio=4, use_swiglu_ffn=False)
_CLIP = _WIDE | dict(patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5)
_SIGLIP = _WIDE | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
_DINOV3 = _BASE | dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
_DINOV3 |= dict(hidden_act="gelu", layer_norm_eps=1e-5, use_gated_mlp=False)
_DINOV3 |= dict(num_register_tokens=0, rope_theta=100.0, query_bias=True)
_DINOV3 |= dict(key_bias=False)
_CLIP_ARCH = Architecture(patch_bias=False, pre_norm=True, final_norm=False)
_SIGLIP_ARCH = Architecture(class_token=False, pool="mean", final_norm=False)
MODEL_TYPES = {
    "vit": ModelType(_VIT, "bicubic", 2),
    "deit": ModelType(_VIT, "bicubic", 3),
    "dinov2": ModelType(_DINOV2 | {"patch_size": 14}, "bicubic", 3, square=False),
    "dinov2_with_registers": ModelType(_DINOV2, "antialias", 3, square=False),
    "clip_vision_model": ModelType(_CLIP, "bicubic", 3, square=False, inner=_CLIP_ARCH),
    "siglip_vision_model": ModelType(_SIGLIP, "bicubic", 3, inner=_SIGLIP_ARCH),
    "dinov3_vit": ModelType(_DINOV3, "antialias", 2, arch=_dinov3),
}


def parse_transformers(config: Fields) -> HubConfig:
    """A HubConfig of a config.json."""
    model, fields = MODEL_TYPES[_kind(config)], config
    host = HOSTS.get(config["model_type"])
    if host is not None:
        fields = config.get("vision_config") or host.fields
    fields = model.fields | {k: v for k, v in fields.items() if k in model.fields}
    for field in {*fields} & COUNTS:
        value = fields[field]
        if not is_integer(value) or value < 1:
            raise InputError(field=field, value=value, allowed="1, 2, 3, ..")
    one_of("num_channels", fields["num_channels"], [3])
    size, patch = _square(fields["image_size"]), _square(fields["patch_size"])
    classify = any("ImageClass" in name for name in config.get("architectures") or ())
    labels = config.get("id2label") if classify else None
    width = fields["hidden_size"]
    sizes = {"embed_dim": width, "depth": fields["num_hidden_layers"]}
    sizes |= {"patch_size": patch, "mlp_ratio": _hidden(fields) / width}
    sizes |= {"num_classes": len(labels)} if labels else {}
    sizes |= {} if model.arch else {"image_size": size}
    acts = SILUS if fields.get("use_gated_mlp") else GELUS
    arch = model.arch and model.arch(fields)
    tower = host and host.tower and host.tower(config, fields, model.inner)
    if tower and tower.depth:
        arch, sizes["depth"] = model.inner, tower.depth
    said = ModelConfig(
        num_heads=fields["num_attention_heads"],
        gelu=one_of("hidden_act", fields["hidden_act"], acts),
        norm_eps=float(fields["layer_norm_eps"]),
        resize=model.resize,
        image_size=size,
        arch=arch,
    )
    names = class_names.shortened(_names(labels))
    return HubConfig(config=said, sizes=sizes, class_names=names, tower=tower)


def processor(images: Fields, config: Fields) -> tuple[ModelConfig, dict[str, Any]]:
    """(mean and std, fields of a Preprocessing) of a preprocessor_config.json.

    images, config: contents of it and of config.json
    Neither has what it lacks. Raises InputError for a crop that none here is.
    """
    if not images:
        return ModelConfig(), {}
    model = MODEL_TYPES[_kind(config)]
    one_of("do_rescale", bool(images.get("do_rescale", True)), [True])
    one_of("do_pad", bool(images.get("do_pad")), [False])
    factor = images.get("rescale_factor", RESCALE)
    if abs(factor - RESCALE) > 1e-6:
        raise InputError(field="rescale_factor", value=factor, allowed="1/255")
    if not images.get("do_normalize", True):
        images = {**images, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    fields = [name for name in ("mean", "std") if f"image_{name}" in images]
    normalization = ModelConfig(**{name: images[f"image_{name}"] for name in fields})
    if not images.get("do_resize", True) or "size" not in images:
        return normalization, {}
    resample = images.get("resample", model.resample)
    interpolation = one_of("resample", resample, RESAMPLE)
    side, squash = _resized(images["size"], model)
    cut = images.get("crop_size")
    cropped = images.get("do_center_crop", cut is not None)
    fixed = cut is not None if cropped else squash
    crop = _share(_square(cut), side) if fixed and cropped else 1.0
    if not fixed or crop > 1:
        problem, value = f"is {images['size']!r} and crop_size {cut!r}", images["size"]
        allowed = "a height and a width, or a crop_size of at most size"
        raise InputError(problem, field="size", value=value, allowed=allowed)
    mode = "squash" if squash else "center"
    crop = {"crop": crop, "crop_mode": mode, "interpolation": interpolation}
    return normalization, crop


def _kind(config):
    """The model type, of a host that of its vision tower."""
    name = config["model_type"]
    one_of("model_type", name, [*MODEL_TYPES, *HOSTS])
    if name not in HOSTS:
        return name
    usual, *others = HOSTS[name].kinds
    kinds = {usual: usual, **{kind: kind for kind in others}, name: usual}
    inner = (config.get("vision_config") or {}).get("model_type", usual)
    return one_of("vision_config.model_type", inner, kinds)


def _names(labels):
    """id2label as names by number; None where they are transformers' placeholders."""
    if not labels:
        return None
    names = [labels.get(str(i)) for i in range(len(labels))]
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        return None
    return tuple(names)


def _share(cut, side):
    """cut / side, or the number next to it of which int(cut / share) is `side`."""
    if not cut or not side:
        return math.inf  # which is refused
    share = cut / side
    return share if int(cut / share) == side else math.nextafter(share, 0)


def _resized(size, model):
    """(pixels a side, whether both sides get them) of a processor's size."""
    if not isinstance(size, Mapping):
        return size, model.square
    if "shortest_edge" in size:
        return size["shortest_edge"], False
    return _square((size["height"], size["width"])), True


def _square(size):
    """A number of pixels, given so or as {"height", "width"} or twice."""
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    if isinstance(size, int):
        return size
    height, width = size
    if height != width:
        raise InputError(field="a size", value=tuple(size), allowed="squares")
    return height
