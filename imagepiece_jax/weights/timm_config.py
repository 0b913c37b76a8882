"""Read timm's config.json as a ViTConfig, and write a config.json for timm."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.data import class_names
from imagepiece_jax.data.preprocessing import DEIT_CROP, Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.weights.folder_files import JsonFields

TIMM_GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick"}
GATE_ACTIVATIONS = {"silu": "exact", "swish": "exact"}  # activations of a gated MLP
TIMM_POOLS = {"token": "token", "avg": "mean", "map": "map", "": "none"}

# Reading.
# {argument of timm's class Eva: the same argument of VisionTransformer}
EVA_ARGUMENT_NAMES = (
    dict(num_reg_tokens="reg_tokens", use_fc_norm="fc_norm", scale_mlp="scale_mlp_norm")
    | dict(use_post_transformer_norm="final_norm", scale_attn_inner="scale_attn_norm")
    | dict(use_pre_transformer_norm="pre_norm")
)
# Arguments in model_args: PART_ARGUMENTS change a model's parts, and SIZE_ARGUMENTS its
# sizes. IDLE_ARGUMENTS change no logits, or only facts that the tensors show too. Any
# other argument, except act_layer and norm_layer, must have timm's usual value.
PART_ARGUMENTS = (
    """
    class_token no_embed_class qkv_bias init_values mlp_ratio global_pool attn_type
    pool_include_prefix attn_pool_num_heads attn_pool_mlp_ratio swiglu_align_to
""".split()
    + [*EVA_ARGUMENT_NAMES, *EVA_ARGUMENT_NAMES.values()]
)
SIZE_ARGUMENTS = ("patch_size", "embed_dim", "depth", "num_heads")
IDLE_ARGUMENTS = """
    drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate
    weight_init fix_init dynamic_img_size strict_img_size img_size num_classes in_chans
    device dtype qkv_fused head_init_scale rope_shift_coords rope_jitter_coords
    rope_rescale_coords
""".split()
# The epsilon of timm's LayerNorm, also without an argument.
NORM_LAYER_EPS = {"layernorm": 1e-6, "layer_norm": 1e-6, None: 1e-6}
# Tags of weights with a SwiGLU. Their model cards pass mlp_layer=SwiGLUPacked and
# act_layer=SiLU to timm, because no config.json can name a layer class.
SWIGLU_TAGS = ("virchow_v1", "virchow_v2")
# Arguments that timm writes for every model, published models included.
USUAL_ARGUMENTS = ("in_chans", "img_size", "num_classes", "global_pool")


def parse_timm(config_fields: JsonFields) -> dict[str, Any]:
    """Parse the content of a config.json into fields of a Description."""
    # Files from before timm 0.9 are flat.
    pretrained_cfg = config_fields.get("pretrained_cfg", config_fields)
    architecture, tag = registry.translate_former_name(config_fields["architecture"])
    tag = pretrained_cfg.get("tag") or tag
    num_classes = config_fields.get("num_classes", pretrained_cfg.get("num_classes"))
    # transformers' TimmWrapperModel has no head.
    if "TimmWrapperModel" in (config_fields.get("architectures") or ()):
        num_classes = 0
    arguments = config_fields.get("model_args") or {}
    if label_offset := pretrained_cfg.get("label_offset"):
        raise InputError(f"label_offset is {label_offset}: some outputs are no classes")
    image_size = _compact_size(pretrained_cfg["input_size"][1:])  # without channels
    positions_size = _compact_size(arguments.get("img_size") or image_size)
    # Whether timm's model takes images whose size differs from its positions'.
    is_dynamic = registry.timm_arguments(architecture).get("dynamic_img_size", False)
    is_flexible = not pretrained_cfg.get("fixed_input_size", not is_dynamic)
    if arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False:
        is_flexible = True
    if not is_flexible:
        image_size = positions_size
    file_fields: dict[str, Any] = {
        "mean": tuple(pretrained_cfg["mean"]),
        "std": tuple(pretrained_cfg["std"]),
        "preprocessing": Preprocessing(
            image_size,
            # timm's default crop, for small images too
            crop=pretrained_cfg.get("crop_pct") or DEIT_CROP,
            crop_mode=pretrained_cfg.get("crop_mode") or Preprocessing.crop_mode,
            interpolation=pretrained_cfg.get("interpolation")
            or Preprocessing.interpolation,
        ),
    }
    if num_classes is not None:
        file_fields["num_classes"] = num_classes
    config = registry.build_config(architecture, **{"num_classes": 0, **file_fields})
    if tag:
        public_name = f"{architecture}.{tag}"
        config = _prefer_public_config(public_name, config, num_classes, arguments)
    if tag in SWIGLU_TAGS:
        config = config.with_arch(mlp="swiglu")
    config = apply_model_args(config, arguments)
    label_names = _find_class_names(pretrained_cfg | config_fields, num_classes, config)
    # transformers' TimmWrapper writes a problem_type.
    problem_type = config_fields.get("problem_type") or config.problem_type
    config = dataclasses.replace(config, **file_fields, problem_type=problem_type)
    return {
        "config": config,
        "class_names": label_names,
        "trained_size": positions_size if is_flexible else None,
        "license": pretrained_cfg.get("license"),
    }


def _compact_size(size):
    """Return a square's side, or else (height, width)."""
    height, width = image_sides(size)
    return height if height == width else (height, width)


def _prefer_public_config(public_name, config, num_classes, arguments):
    """Return a public model's config if the file describes its weights; else `config`.

    config, num_classes: the file's config and number of classes, which must agree
    """
    # A fine-tuned model keeps the tag of the weights it started from. With different
    # classes, images or arguments it was trained with the architecture's functions,
    # such as exact GELU, and not with the tag's (QuickGELU for CLIP's weights).
    if not registry.is_known(public_name) or not {*arguments} <= {*USUAL_ARGUMENTS}:
        return config
    public_config = registry.model_config(public_name)
    public_pool = public_config.arch.pool
    given_pool = arguments.get("global_pool")
    # An unknown pool counts as equal: `apply_model_args` refuses it.
    is_same = num_classes in (None, public_config.num_classes)
    if given_pool is not None:
        is_same = is_same and TIMM_POOLS.get(given_pool, public_pool) == public_pool
    for field in ("mean", "std", "image_size"):
        is_same = is_same and getattr(public_config, field) == getattr(config, field)
    return public_config if is_same else config


def _find_class_names(config_fields, num_classes, config):
    """Find a file's label descriptions or names, or those of a public model."""
    stored_names = config_fields.get("label_names") if num_classes != 0 else None
    label_names = stored_names
    if isinstance(stored_names, Mapping) and stored_names:  # numbers may be missing
        label_names = [stored_names.get(str(label)) for label in range(num_classes)]
    if label_names:
        descriptions = config_fields.get("label_descriptions") or {}
        long_names = [descriptions.get(name, name) for name in label_names]
        # Names give names: `or ()` is for the type checker.
        return tuple(class_names.shorten_imagenet_names(long_names) or ())
    # Without a tag the model may have learned other classes.
    if config.name and "." in config.name:
        return registry.published_class_names(config.name, num_classes)
    return None


def apply_model_args(config: ViTConfig, arguments: JsonFields) -> ViTConfig:
    """Apply model_args, the arguments of timm's class, to a timm model's config."""
    timm_model, _, _ = (config.name or "").partition(".")
    is_eva = registry.timm_class(timm_model) == "Eva"
    is_gated = config.arch.mlp == "swiglu"
    default_arguments = registry.timm_arguments(timm_model)
    part_names = [name for name in PART_ARGUMENTS if name in default_arguments]
    part_arguments = {name: default_arguments[name] for name in part_names}
    sizes = {}
    architecture_fields: dict[str, Any] = {}
    for argument, value in arguments.items():
        field_path = f"model_args.{argument}"
        if argument in SIZE_ARGUMENTS:
            sizes[argument] = value
        elif argument in IDLE_ARGUMENTS:
            continue
        elif argument == "act_layer" and argument in default_arguments:
            gelu_of_act = GATE_ACTIVATIONS if is_gated else TIMM_GELUS | {None: "exact"}
            check_choice(field_path, value, gelu_of_act)
            architecture_fields["gelu"] = gelu_of_act[value]
        elif argument == "norm_layer" and argument in default_arguments:
            check_choice(field_path, value, NORM_LAYER_EPS)
            architecture_fields["norm_eps"] = NORM_LAYER_EPS[value]
        elif argument in PART_ARGUMENTS and argument in default_arguments:
            part_arguments[argument] = value
        elif argument not in default_arguments or value != default_arguments[argument]:
            raise InputError(f"{field_path} is {value!r}, which is not supported")
    check_choice("model_args.global_pool", part_arguments["global_pool"], TIMM_POOLS)
    embed_dim = sizes.get("embed_dim", config.embed_dim)
    hidden_width = int(embed_dim * part_arguments["mlp_ratio"])
    if is_gated and not is_eva:  # mlp_ratio counts both halves of the packed layer
        hidden_width //= 2
    if is_gated:  # rounded up to a multiple
        hidden_width += -hidden_width % (part_arguments.get("swiglu_align_to") or 1)
    architecture_fields |= _translate_arguments(part_arguments, is_eva, config.arch)
    if architecture_fields["pool"] == "map":
        # 0 heads and the ratio None stand for those of the blocks.
        num_pool_heads = part_arguments.get("attn_pool_num_heads") or 0
        if num_pool_heads == sizes.get("num_heads", config.num_heads):
            num_pool_heads = 0
        pool_ratio = part_arguments.get("attn_pool_mlp_ratio") or 0
        pool_width = int(embed_dim * pool_ratio) or hidden_width
        pool_mlp_ratio = None if pool_width == hidden_width else pool_width / embed_dim
        architecture_fields["pool_heads"] = num_pool_heads
        architecture_fields["pool_mlp_ratio"] = pool_mlp_ratio
    architecture = dataclasses.replace(config.arch, **architecture_fields)
    mlp_ratio = hidden_width / embed_dim
    return dataclasses.replace(config, **sizes, arch=architecture, mlp_ratio=mlp_ratio)


def _translate_arguments(part_arguments, is_eva, architecture):
    """Translate timm's PART_ARGUMENTS into fields of an Architecture."""
    arguments = {}  # under VisionTransformer's names
    for name, value in part_arguments.items():
        arguments[EVA_ARGUMENT_NAMES.get(name, name)] = value
    pool = TIMM_POOLS[arguments["global_pool"]]
    has_prefix = arguments["class_token"] or arguments["reg_tokens"]
    fc_norm = arguments["fc_norm"]
    if fc_norm is None:
        fc_norm = pool == "mean"
    # timm would make only this norm, and never compute it.
    if architecture.dist_token and fc_norm:
        raise InputError("model_args.fc_norm does not fit a distillation token")
    final_norm = arguments["final_norm"]
    layer_scale = bool(arguments["init_values"])
    if is_eva:
        if final_norm is None:
            final_norm = not fc_norm
        layer_scale = arguments["init_values"] is not None  # 0 counts, too
        includes_prefix = pool == "map"  # Eva's map always reads the prefix
    else:  # VisionTransformer has one norm, before or after the pool
        fc_norm = final_norm and fc_norm
        final_norm = final_norm and not fc_norm
        includes_prefix = arguments["pool_include_prefix"] and pool != "token"
    lacks_prefix_position = arguments["no_embed_class"] and has_prefix
    # timm's EvaAttention has two biases, q_bias and v_bias.
    has_two_biases = is_eva and arguments["attn_type"] == "eva"
    lacks_key_bias = has_two_biases and arguments["qkv_bias"]
    return {
        "class_token": arguments["class_token"],
        "registers": arguments["reg_tokens"],
        "prefix_positions": not (lacks_prefix_position and architecture.positions),
        "qkv_bias": arguments["qkv_bias"],
        "key_bias": not lacks_key_bias,
        "pre_norm": arguments["pre_norm"],
        "patch_bias": not arguments["pre_norm"],
        "attn_norm": arguments["scale_attn_norm"],
        "mlp_norm": arguments["scale_mlp_norm"],
        "layer_scale": layer_scale,
        "pool": pool,
        "pool_include_prefix": bool(includes_prefix and has_prefix),
        "final_norm": final_norm,
        "fc_norm": fc_norm,
    }


# Writing.
def describe_timm(pretrained: Pretrained) -> dict[str, Any]:
    """Describe the dense part of a Pretrained for timm; {} if timm lacks the model."""
    config = pretrained.model.config
    if pretrained.origin.positions is not None:  # the saved ones
        config = config.with_preprocessing(image_size=pretrained.origin.image_size)
    architecture_fields = _find_timm_architecture(config)
    if not architecture_fields:
        return {}
    optional_fields: dict[str, Any] = {}
    if pretrained.preprocessing.resizes:
        crop_fields = pretrained.preprocessing.as_json
        optional_fields["crop_pct"] = crop_fields["crop"]
        optional_fields["crop_mode"] = crop_fields["crop_mode"]
        optional_fields["interpolation"] = crop_fields["interpolation"]
    if pretrained.origin.license:
        optional_fields["license"] = pretrained.origin.license
    label_names: Any = pretrained.class_names
    if label_names and None in label_names:  # {number: name} skips None
        labels = [label for label, name in enumerate(label_names) if name is not None]
        label_names = {str(label): label_names[label] for label in labels}
    return {
        **architecture_fields,
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        **({"label_names": label_names} if label_names else {}),
        "pretrained_cfg": {
            "input_size": [3, *image_sides(config.image_size)],
            "fixed_input_size": True,
            "mean": config.mean,
            "std": config.std,
            "num_classes": config.num_classes,
            **optional_fields,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.arch.dist_token else "head",
        },
    }


def _find_timm_architecture(config):
    """Find timm's "architecture" and "model_args"; {} if timm lacks the model.

    The architecture is a public model with equal parts and sizes, preferably with the
    same image size.
    """
    candidates = []  # (has_other_size, timm's name)
    for timm_model, timm_row in registry.public_models().items():
        # Two parts are not compared: position resizing, which is over, and a GELU that
        # "act_layer" sets.
        ignored_parts = {"resize": DEIT.resize}
        if timm_row["class"] != "Eva":
            ignored_parts["gelu"] = DEIT.gelu
        config_traits = _collect_timm_traits(config, ignored_parts)
        for tag in timm_row["weights"]:
            public_config = registry.model_config(f"{timm_model}.{tag}")
            if _collect_timm_traits(public_config, ignored_parts) == config_traits:
                has_other_size = public_config.image_size != config.image_size
                candidates.append((has_other_size, timm_model))
    if config.stem != "patch" or not candidates:
        return {}
    # False, an equal size, comes first.
    _, architecture = min(candidates, key=lambda candidate: candidate[0])
    arguments: dict[str, Any] = {"img_size": config.image_size}
    if config.arch.mlp != "swiglu" and registry.timm_class(architecture) != "Eva":
        layer_of_gelu = {gelu: act_layer for act_layer, gelu in TIMM_GELUS.items()}
        arguments["act_layer"] = layer_of_gelu[config.arch.gelu]
    return {"architecture": architecture, "model_args": arguments}


def _collect_timm_traits(config, ignored_parts):
    sizes = [getattr(config, field) for field in (*SIZE_ARGUMENTS, "mlp_ratio")]
    return sizes, dataclasses.replace(config.arch, **ignored_parts)
