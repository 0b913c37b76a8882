"""Read OpenCLIP's open_clip_config.json as a ViTConfig.

A missing field has the default of CLIPVisionCfg (open_clip 3.3).
"""

import dataclasses

from imagepiece_jax.common.checks import check_choice, replace_lists
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import PROJECTION, ViTConfig
from imagepiece_jax.weights import timm_config
from imagepiece_jax.weights.folder_files import JsonFields

VISION_DEFAULTS = (
    dict(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16)
    | dict(image_size=224, pool_type="tok", final_ln_after_pool=False)
    | dict(act_kwargs=None, norm_kwargs=None, timm_model_name=None)
    | dict(timm_pool="avg", timm_proj="linear", no_ln_pre=False)
)
OPEN_CLIP_POOLS = {"tok": "token", "avg": "mean", "none": "none"}
# Unsupported parts: {field: values that leave the part out}.
ALLOWED_VALUES = (
    dict(qk_norm=[False], scaled_cosine_attn=[False], attentional_pool=[False])
    | dict(scale_heads=[False], scale_attn_inner=[False], scale_attn=[False])
    | dict(scale_fc=[False], ls_init_value=[None], block_type=[None, "default"])
)
# Fields that change nothing, or only facts that the tensors show too.
IDLE_VISION_FIELDS = """
    patch_dropout attn_pooler_queries attn_pooler_heads pos_embed_type output_tokens
    timm_model_pretrained timm_proj_bias timm_drop timm_drop_path
""".split()
# timm_proj: embed_dim outputs by OpenCLIP's layer after timm's model, no such outputs,
# or embed_dim outputs by the head of timm's model.
TIMM_PROJECTIONS = ("linear", "none", "")
CROP_MODE_OF_RESIZE = {"shortest": "center", "squash": "squash"}
CLIP_INTERPOLATIONS = ("bicubic", "bilinear")
LAYER_NORM_EPS = 1e-5  # of PyTorch's LayerNorm
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def parse_open_clip(config_fields: JsonFields) -> ViTConfig:
    """Parse the content of an open_clip_config.json: the vision tower's config."""
    model_cfg = config_fields["model_cfg"]
    vision_cfg = model_cfg["vision_cfg"]
    for field, value in vision_cfg.items():
        field_path = f"vision_cfg.{field}"
        if field in ALLOWED_VALUES:
            check_choice(field_path, value, ALLOWED_VALUES[field])
        elif field not in (*VISION_DEFAULTS, *IDLE_VISION_FIELDS):
            raise InputError(f"{field_path} is {value!r}, which is not supported")
    vision_fields = VISION_DEFAULTS | vision_cfg
    image_size = replace_lists(vision_fields["image_size"])
    image_fields = _parse_preprocess_cfg(
        config_fields.get("preprocess_cfg"), image_size
    )
    if vision_fields["timm_model_name"]:
        return _build_timm_config(vision_fields, model_cfg, image_fields)
    return _build_tower_config(vision_fields, model_cfg, image_fields)


def _parse_preprocess_cfg(preprocess_cfg, image_size):
    """Translate preprocess_cfg into a ViTConfig's mean, std and preprocessing."""
    preprocess_cfg = preprocess_cfg or {}  # OpenCLIP's defaults
    resize_mode = preprocess_cfg.get("resize_mode", "shortest")
    interpolation = preprocess_cfg.get("interpolation", "bicubic")
    check_choice("preprocess_cfg.resize_mode", resize_mode, CROP_MODE_OF_RESIZE)
    check_choice("preprocess_cfg.interpolation", interpolation, CLIP_INTERPOLATIONS)
    height, width = image_sides(image_size)
    # OpenCLIP ignores the interpolation for a crop that is not square. It resizes to
    # the crop's size, so the crop's share is 1.
    if resize_mode == "shortest" and height != width:
        interpolation = "bicubic"
    return {
        "mean": tuple(preprocess_cfg.get("mean") or CLIP_MEAN),
        "std": tuple(preprocess_cfg.get("std") or CLIP_STD),
        "preprocessing": Preprocessing(
            image_size, 1.0, CROP_MODE_OF_RESIZE[resize_mode], interpolation
        ),
    }


def _build_tower_config(vision_fields, model_cfg, image_fields):
    """Make the config of OpenCLIP's own VisionTransformer."""
    width = vision_fields["width"]
    depth = vision_fields["layers"]
    if not isinstance(depth, int):
        raise InputError(f"vision_cfg.layers is {depth}, so the model is a ResNet")
    norm_kwargs = vision_fields["norm_kwargs"] or {}
    act_kwargs = vision_fields["act_kwargs"] or {}
    # By their options' names: each has a single one that this package computes.
    check_choice("vision_cfg.norm_kwargs", [*norm_kwargs], [[], ["eps"]])
    check_choice("vision_cfg.act_kwargs", [*act_kwargs], [[], ["approximate"]])
    check_choice("vision_cfg.pool_type", vision_fields["pool_type"], OPEN_CLIP_POOLS)
    pool = OPEN_CLIP_POOLS[vision_fields["pool_type"]]
    approximate = act_kwargs.get("approximate", "none")
    gelu_of_approximate = {"none": "exact", "tanh": "tanh"}
    if model_cfg.get("quick_gelu", False):
        gelu_of_approximate = {"none": "quick"}
    check_choice("vision_cfg.act_kwargs.approximate", approximate, gelu_of_approximate)
    # The last norm applies to the tokens or, as fc_norm, to the pooled vector.
    fc_norm = pool == "mean" and bool(vision_fields["final_ln_after_pool"])
    architecture = Architecture(
        patch_bias=False,
        pre_norm=not vision_fields["no_ln_pre"],
        gelu=gelu_of_approximate[approximate],
        norm_eps=float(norm_kwargs.get("eps", LAYER_NORM_EPS)),
        resize="antialias",
        pool=pool,
        final_norm=not fc_norm,
        fc_norm=fc_norm,
    )
    return ViTConfig(
        embed_dim=width,
        depth=depth,
        num_heads=width // vision_fields["head_width"],
        patch_size=vision_fields["patch_size"],
        # OpenCLIP cuts the MLP's width to a whole number.
        mlp_ratio=int(width * vision_fields["mlp_ratio"]) / width,
        arch=architecture,
        num_classes=model_cfg["embed_dim"],
        problem_type=PROJECTION,
        **image_fields,
    )


def _build_timm_config(vision_fields, model_cfg, image_fields):
    """Make the config of a timm model, maybe with a projection."""
    # OpenCLIP builds the model with timm's own code for the architecture, whatever the
    # weights were trained with.
    architecture, _, _ = vision_fields["timm_model_name"].partition(".")
    projection_kind = vision_fields["timm_proj"] or ""
    timm_pool = vision_fields["timm_pool"]
    check_choice("vision_cfg.timm_proj", projection_kind, TIMM_PROJECTIONS)
    config = registry.build_config(architecture, num_classes=0, **image_fields)
    if projection_kind != "linear":  # timm's pool decides the last norm's place
        config = timm_config.apply_model_args(config, {"global_pool": timm_pool})
    elif timm_pool:  # without a pool the model's own stays
        check_choice("vision_cfg.timm_pool", timm_pool, timm_config.TIMM_POOLS)
        pool = timm_config.TIMM_POOLS[timm_pool]
        includes_prefix = config.arch.pool_include_prefix and pool == "map"
        config = config.with_arch(pool=pool, pool_include_prefix=includes_prefix)
    if projection_kind == "none":
        return config
    head_fields = {"num_classes": model_cfg["embed_dim"], "problem_type": PROJECTION}
    return dataclasses.replace(config, **head_fields)
