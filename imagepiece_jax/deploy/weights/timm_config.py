"""timm's config.json: read as a ViTConfig, and written for timm."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data import class_names
from imagepiece_jax.data.preprocessing import DEIT_CROP, Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT, Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.pretrained import Pretrained

TIMM_GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick"}
SILUS = {"silu": "exact", "swish": "exact"}  # of a gated MLP, which has no GELU
POOLS = {"token": "token", "avg": "mean", "map": "map", "": "none"}
# {argument of timm's class: the field of an Architecture with the same value}
FIELD_OF_ARGUMENT = {
    "class_token": "class_token",
    "qkv_bias": "qkv_bias",
    "pre_norm": "pre_norm",
    "pool_include_prefix": "pool_include_prefix",
    "reg_tokens": "registers",
}
# Parts that only timm's class Eva has.
EVA = ("positions", "rotary", "key_bias", "attn_norm", "mlp_norm")


def is_eva(arch: Architecture) -> bool:
    """Whether timm has it as its class Eva, not as VisionTransformer."""
    return any(getattr(arch, field) != getattr(DEIT, field) for field in EVA)


# Reading.
# The epsilon of timm's LayerNorm, which is that of a class without an argument.
NORMS = {"layernorm": 1e-6, "layer_norm": 1e-6, None: 1e-6}
# Arguments in model_args: those that change parts of an Architecture, those that are
# sizes, and those that change no logits, or nothing that tensors do not show.
PARTS = (
    *FIELD_OF_ARGUMENT,
    "no_embed_class",
    "init_values",
    "global_pool",
    "final_norm",
    "fc_norm",
)
NULLABLE = ("init_values", "fc_norm")
SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
IDLE = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate")
IDLE += ("attn_drop_rate", "drop_path_rate", "weight_init", "fix_init")
IDLE += ("dynamic_img_size", "strict_img_size", "img_size", "num_classes", "mlp_ratio")
IDLE += ("device", "dtype")
# Arguments of parts that no model here has, with the values that leave them out.
ABSENT = dict.fromkeys(("qk_norm", "scale_attn_norm", "scale_mlp_norm"), [False])
ABSENT |= {"dynamic_img_pad": [False], "proj_bias": [True], "pos_embed": ["learn"]}
ABSENT |= {"embed_norm_layer": [None], "in_chans": [3]}
# Tags of weights whose authors' cards pass timm a layer that no config.json can name:
# mlp_layer=SwiGLUPacked, act_layer=SiLU.
SWIGLU = ("virchow_v1", "virchow_v2")
# Arguments that timm writes for every model, also for a published one.
WRITTEN = ("in_chans", "img_size", "num_classes", "global_pool")


def parse_timm(file: Mapping[str, Any]) -> tuple[ViTConfig, tuple | None]:
    """(the config, class names or None); files from before timm 0.9 are flat."""
    images = file.get("pretrained_cfg", file)
    name = file["architecture"]
    classes = file.get("num_classes", images.get("num_classes"))
    arguments = file.get("model_args") or {}
    if images.get("label_offset"):
        offset = images["label_offset"]
        raise InputError(
            f"label_offset is {offset}, so the head has outputs that are no classes"
        )
    _, height, width = images["input_size"]
    height, width = sides(arguments.get("img_size") or (height, width))
    trained = {"mean": tuple(images["mean"]), "std": tuple(images["std"])}
    trained["image_size"] = height if height == width else (height, width)
    stated = dict(trained)
    if classes is not None:
        stated["num_classes"] = classes
    base = None
    if tag := images.get("tag"):
        base = _published(f"{name}.{tag}", stated, arguments)
    if base is None:
        base = of_architecture(name, trained)
    if tag in SWIGLU:
        base = base.with_arch(mlp="swiglu")
    config = _with_model_args(base, arguments)
    crop = {"crop": DEIT_CROP}  # timm's for a file without, of small images, too
    for field in ("crop_mode", "interpolation"):
        crop[field] = images.get(field) or getattr(Preprocessing, field)
    if images.get("crop_pct"):
        crop["crop"] = images["crop_pct"]
    names = class_names.shortened(labels(images | file, classes))
    if not names and "." in base.name:  # else it may have learned other classes
        names = registry.published_class_names(base.name, classes)
    return dataclasses.replace(config, **stated, **crop), names


def of_architecture(name: str, images: Mapping[str, Any]) -> ViTConfig:
    """The config of a model that timm's code of an architecture made, without a head.

    images: the fields of a ViTConfig that say what it was trained on
    Raises InputError for an architecture that is not here.
    """
    row = registry.public_models().get(name)
    if row is None:
        raise InputError(f"architecture is {name!r}; {registry.NAMES}")
    sizes = {k: v for k, v in row.items() if k not in ("arch", "weights")}
    arch = Architecture(**row["arch"])
    return ViTConfig(name=name, arch=arch, num_classes=0, **sizes, **images)


def _published(name, stated, arguments):
    """The config of a public model, where the file is that of its weights; else None.

    A fine-tuned model has the tag of the weights it started from. With other classes,
    images or arguments it was trained with the functions of timm's architecture, such
    as exact GELU for CLIP's weights, not with those that the tag stands for.

    stated: fields of the file, in which it has to agree with the published model
    """
    if not registry.is_known(name) or not {*arguments} <= {*WRITTEN}:
        return None
    published = registry.config(name)
    pool = published.arch.pool
    if POOLS.get(arguments.get("global_pool"), pool) != pool:
        return None
    for field, value in stated.items():
        if getattr(published, field) != value:
            return None
    return published


def labels(config: Mapping[str, Any], classes: int | None):
    """Descriptions of the labels where there are any, else their names; or None."""
    names = config.get("label_names")
    if not names:
        return None
    if isinstance(names, Mapping):  # by number, some of which may lack
        names = [names.get(str(i)) for i in range(classes)]
    described = config.get("label_descriptions") or {}
    return tuple(described.get(name, name) for name in names)


def _with_model_args(base, arguments):
    """A config changed by the arguments of timm's class."""
    changes = {}
    parts = {}  # of timm's class
    ours = {}  # of an Architecture
    for field, value in arguments.items():
        path = f"model_args.{field}"
        if field == "act_layer" and not is_eva(base.arch):
            acts = TIMM_GELUS | {None: "exact"}
            if base.arch.mlp == "swiglu":
                acts = SILUS
            check_choice(path, value, acts)
            ours["gelu"] = acts[value]
        elif field == "norm_layer":
            check_choice(path, value, NORMS)
            ours["norm_eps"] = NORMS[value]
        elif field in ABSENT:
            check_choice(path, value, ABSENT[field])
        elif field not in (*PARTS, *SIZES, *IDLE):
            raise InputError(f"{path} is {value!r}, which no model here has")
        # None is as a missing argument, but for two.
        elif field in PARTS and (value is not None or field in NULLABLE):
            parts[field] = value
        elif field in SIZES and value is not None:
            changes[field] = value
    arch = base.arch
    if parts:
        arch = changed_architecture(arch, parts)
    changes["arch"] = dataclasses.replace(arch, **ours)
    width = changes.get("embed_dim", base.embed_dim)
    hidden = int(width * base.mlp_ratio)
    if ratio := arguments.get("mlp_ratio"):
        hidden = int(width * ratio)
        if arch.mlp == "swiglu" and not is_eva(arch):  # two layers in one
            hidden //= 2
    if "embed_dim" in changes or ratio:
        changes["mlp_ratio"] = hidden / width
    return dataclasses.replace(base, **changes)


def changed_architecture(arch: Architecture, arguments) -> Architecture:
    """An Architecture changed by arguments of timm's VisionTransformer, or Eva."""
    changed = _with_arguments(arch, arguments)
    if not is_eva(arch):
        return changed
    reads = changed.pool == "map" and changed.prefix > 0  # there is no argument for it
    changed = dataclasses.replace(changed, pool_include_prefix=reads)
    heads = ("pool", "pool_include_prefix", "final_norm", "fc_norm")
    same = {field: getattr(arch, field) for field in heads}
    others = dataclasses.replace(changed, **same) != arch
    if others or "pool_include_prefix" in arguments:
        raise InputError(
            f"model_args has {', '.join(arguments)} for a model with rotary positions"
        )
    return changed


def _with_arguments(arch, arguments):
    """The Architecture that timm's class builds of `arch` with these arguments."""
    fields = {}
    for argument, field in FIELD_OF_ARGUMENT.items():
        if argument in arguments:
            fields[field] = arguments[argument]
    if "pre_norm" in fields:
        fields["patch_bias"] = not fields["pre_norm"]
    if "init_values" in arguments:
        fields["layer_scale"] = bool(arguments["init_values"])
    if "no_embed_class" in arguments:
        fields["prefix_positions"] = not arguments["no_embed_class"]
    if {"global_pool", "final_norm", "fc_norm"} & {*arguments}:
        fields |= _head(arch, arguments)
    arch = dataclasses.replace(arch, **fields)
    if not arch.prefix:
        arch = dataclasses.replace(arch, prefix_positions=True)
    return arch


def _head(arch, arguments):
    """pool, final_norm and fc_norm by arguments of timm's class.

    Without an argument fc_norm the last norm is behind the pool if that is a mean. An
    architecture that differs from this has the argument in its own code, and keeps it.
    """
    pool = arch.pool
    if "global_pool" in arguments:
        check_choice("model_args.global_pool", arguments["global_pool"], POOLS)
        pool = POOLS[arguments["global_pool"]]
    fc_norm = arguments.get("fc_norm")
    differs = arch.fc_norm != (arch.pool == "mean")
    if "fc_norm" not in arguments and differs:
        fc_norm = arch.fc_norm
    if fc_norm is None:
        fc_norm = pool == "mean"
    if arch.dist_token and fc_norm:  # timm makes this norm, and none that it computes
        raise InputError(
            "model_args.fc_norm is True for a model with a distillation token"
        )
    normed = arguments.get("final_norm", arch.final_norm or arch.fc_norm)
    return {
        "pool": pool,
        "final_norm": normed and not fc_norm,
        "fc_norm": normed and fc_norm,
    }


# Writing.
def describe_timm(vit: Pretrained) -> dict[str, Any]:
    """The content of a config.json by which timm makes the dense part of a Pretrained.

    {} where timm has no such model.
    """
    config = vit.model.config
    images = vit.preprocessing
    architecture = _architecture(config)
    if not architecture:
        return {}
    optional = {}
    if images.resizes:
        way = images.as_json
        optional = {"crop_pct": way["crop"], "crop_mode": way["crop_mode"]}
        optional["interpolation"] = way["interpolation"]
    if vit.source.license:
        optional["license"] = vit.source.license
    heads = "head"
    if config.arch.dist_token:
        heads = ["head", "head_dist"]
    named = {}
    if vit.class_names and None in vit.class_names:  # then by number
        names = enumerate(vit.class_names)
        named["label_names"] = {str(i): name for i, name in names if name is not None}
    elif vit.class_names:
        named["label_names"] = vit.class_names
    return {
        **architecture,
        "num_classes": config.num_classes,
        "num_features": config.embed_dim,
        **named,
        "pretrained_cfg": {
            "input_size": [3, *sides(config.image_size)],
            "fixed_input_size": True,
            "mean": config.mean,
            "std": config.std,
            "num_classes": config.num_classes,
            **optional,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": heads,
        },
    }


def _architecture(config: ViTConfig) -> dict[str, Any]:
    """The fields "architecture" and "model_args"; {} where timm has no such model.

    The architecture is a public model of the same parts and sizes, if possible for
    images of the same size.
    """
    eva = is_eva(config.arch)
    # Not compared: how positions are resized, which is over, and a GELU that
    # "act_layer" sets.
    ignored = {"resize": DEIT.resize}
    if not eva:
        ignored["gelu"] = DEIT.gelu
    ours = _sizes_and_parts(config, ignored)
    same = []
    for name, row in registry.public_models().items():
        for tag, images in row["weights"].items():
            known = registry.config(f"{name}.{tag}")
            if config.stem == "patch" and _sizes_and_parts(known, ignored) == ours:
                same.append((images["image_size"] != config.image_size, name))
    if not same:
        return {}
    arguments = {"img_size": config.image_size}
    if config.arch.mlp != "swiglu" and not eva:
        gelus = {ours: theirs for theirs, ours in TIMM_GELUS.items()}
        arguments["act_layer"] = gelus[config.arch.gelu]
    _, name = min(same, key=lambda each: each[0])
    return {"architecture": name, "model_args": arguments}


def _sizes_and_parts(config, ignored):
    """What makes two models the same to timm."""
    sizes = [getattr(config, field) for field in (*SIZES, "mlp_ratio")]
    return sizes, dataclasses.replace(config.arch, **ignored)
