"""OpenCLIP's open_clip_config.json, read as fields of a Source.

Of a field that the file lacks the default of CLIPVisionCfg holds (open_clip 3.3).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.spec import ModelSpec
from imagepiece_jax.weights import timm_config
from imagepiece_jax.weights.layouts import CLIP_IMAGES

Fields = Mapping[str, Any]  # of a JSON file
DEFAULTS = dict(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16)
DEFAULTS |= dict(image_size=224, pool_type="tok", final_ln_after_pool=False)
DEFAULTS |= dict(act_kwargs=None, norm_kwargs=None, timm_model_name=None)
DEFAULTS |= dict(timm_pool="avg", timm_proj="linear")
POOLS = {"tok": "token", "avg": "mean", "none": "none"}
# Parts that no model here has, with the values that leave them out.
ABSENT = dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads"), [False])
ABSENT |= dict.fromkeys(("scale_attn_inner", "scale_attn", "scale_fc"), [False])
ABSENT |= {"attentional_pool": [False], "ls_init_value": [None]}
ABSENT |= {"block_type": [None, "default"]}
# Fields that change nothing, or nothing that tensors do not show.
IDLE = ("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "no_ln_pre")
IDLE += ("pos_embed_type", "output_tokens", "timm_model_pretrained", "timm_proj_bias")
IDLE += ("timm_drop", "timm_drop_path")
RESIZE_MODES = {"shortest": "center", "squash": "squash"}
INTERPOLATIONS = ("bicubic", "bilinear")
EPS = 1e-5  # of PyTorch's LayerNorm


def parse_open_clip(config: Fields) -> dict[str, Any]:
    """Fields of a Source by the content of an open_clip_config.json."""
    model = config["model_cfg"]
    images = config.get("preprocess_cfg") or {}
    vision = model["vision_cfg"]
    for field, value in vision.items():
        path = f"vision_cfg.{field}"
        if field in ABSENT:
            check_choice(path, value, ABSENT[field])
        elif field not in (*DEFAULTS, *IDLE):
            raise InputError(f"{path} is {value!r}, which no model here has")
    vision = DEFAULTS | vision
    if vision["timm_model_name"]:
        spec, sizes = _of_timm(vision, model)
    else:
        spec, sizes = _of_tower(vision, model)
    normalization = {}
    for field, default in CLIP_IMAGES.items():
        normalization[field] = tuple(images.get(field) or default)
    mode = images.get("resize_mode", "shortest")
    interpolation = images.get("interpolation", "bicubic")
    check_choice("preprocess_cfg.resize_mode", mode, RESIZE_MODES)
    check_choice("preprocess_cfg.interpolation", interpolation, INTERPOLATIONS)
    crop = {"crop": 1.0, "crop_mode": RESIZE_MODES[mode]}
    crop["interpolation"] = interpolation
    spec = dataclasses.replace(spec, **normalization)
    return {"spec": spec, "sizes": sizes, "crop": crop}


def _of_tower(vision, model):
    """(ModelSpec, sizes of tensors) of OpenCLIP's own VisionTransformer."""
    width = vision["width"]
    heads = vision["width"] // vision["head_width"]
    norm = vision["norm_kwargs"] or {}
    act = vision["act_kwargs"] or {}
    _check_only("vision_cfg.norm_kwargs", norm, "eps")
    check_choice("vision_cfg.pool_type", vision["pool_type"], POOLS)
    pool = POOLS[vision["pool_type"]]
    size = vision["image_size"]
    if not isinstance(size, int):
        size = tuple(size)
    parts = {
        "gelu": _gelu(act, bool(model.get("quick_gelu", False))),
        "norm_eps": float(norm.get("eps", EPS)),
        "resize": "antialias",
        "pool": pool,
        "pool_include_prefix": False,
        "fc_norm": pool == "mean" and bool(vision["final_ln_after_pool"]),
        "rotary": None,
        "post_norm": False,
    }
    spec = ModelSpec(
        num_heads=heads,
        image_size=size,
        arch=parts,
    )
    depth = vision["layers"]
    if not isinstance(depth, int):
        raise InputError(f"vision_cfg.layers is {depth}, as a ResNet's")
    sizes = {"embed_dim": width, "depth": depth, "patch_size": vision["patch_size"]}
    sizes |= {"mlp_ratio": int(width * vision["mlp_ratio"]) / width}
    return spec, sizes | {"num_classes": model["embed_dim"]}


def _check_only(path, options, known):
    """Refuse an option, of those at a path, other than the known one."""
    for name, value in options.items():
        if name != known:
            raise InputError(f"{path} has {name}={value!r}, which no model here has")


def _gelu(act, quick):
    """The form of GELU by `act_kwargs` and `quick_gelu`."""
    approximate = act.get("approximate", "none")
    forms = {"none": "exact", "tanh": "tanh"}
    if quick:
        forms = {"none": "quick"}
    _check_only("vision_cfg.act_kwargs", act, "approximate")
    check_choice("vision_cfg.act_kwargs.approximate", approximate, forms)
    return forms[approximate]


def _of_timm(vision, model):
    """(ModelSpec, sizes of tensors) of a model of timm's, maybe with a projection.

    OpenCLIP makes it by timm's own code, whatever the weights were trained with.
    """
    name, _, _ = vision["timm_model_name"].partition(".")
    row = registry.public_models().get(name)
    if row is None:
        raise InputError(
            f"vision_cfg.timm_model_name is {name!r}, which is no model here"
        )
    proj = vision["timm_proj"]
    check_choice("vision_cfg.timm_proj", proj, ["linear", "none", ""])
    pool = vision["timm_pool"]
    arch = Architecture(**row["arch"])
    if proj != "linear":  # timm makes the pool, and places the last norm for it
        arch = timm_config.changed_architecture(arch, {"global_pool": pool})
    elif pool:  # else the pool is that of the model
        check_choice("vision_cfg.timm_pool", pool, timm_config.POOLS)
        pool = timm_config.POOLS[pool]
        includes_prefix = arch.pool_include_prefix and pool == "map"
        parts = {"pool": pool, "pool_include_prefix": includes_prefix}
        arch = dataclasses.replace(arch, **parts)
    spec = ModelSpec(name=name, arch=arch, num_heads=row["num_heads"])
    sizes = {}
    if proj != "none":
        sizes["num_classes"] = model["embed_dim"]
    return spec, sizes
