"""timm's config.json: read as fields of a Source, and written for timm."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data import class_names
from imagepiece_jax.data.preprocessing import DEIT_CROP
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT, Architecture
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.spec import SIZE_FIELDS, ModelSpec, size_of
from imagepiece_jax.models.vit import ViT

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
EPS = 1e-6  # of norms, the smallest that timm's architectures have
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
SIZES = ("patch_size", "embed_dim", "depth")
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


def parse_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Source; files from before timm 0.9 are flat."""
    images = config.get("pretrained_cfg", config)
    name = config["architecture"]
    classes = config.get("num_classes", images.get("num_classes"))
    arguments = config.get("model_args") or {}
    _, height, width = images["input_size"]
    height, width = sides(arguments.get("img_size") or (height, width))
    size = (height, width)
    if height == width:
        size = height
    normalization = {"mean": tuple(images["mean"]), "std": tuple(images["std"])}
    stated = normalization | {"num_classes": classes, "image_size": size}
    full_name = _full_name(name, images.get("tag"), stated, arguments)
    fields, sizes = _arguments(arguments, full_name)
    if full_name == name and (row := registry.public_models().get(name)):
        # Not the published model: it was trained by timm's code of the architecture.
        arch = Architecture(**row["arch"])
        fields = {"gelu": arch.gelu, "resize": arch.resize} | fields
    if images.get("tag") in SWIGLU:
        fields = fields | {"mlp": "swiglu"}
    if classes is not None:
        sizes = {"num_classes": classes} | sizes
    if images.get("fixed_input_size", True):
        sizes = sizes | {"image_size": size}
    if images.get("label_offset"):
        offset = images["label_offset"]
        raise InputError(
            f"label_offset is {offset}, so the head has outputs that are no classes"
        )
    keys = dict(crop="crop_pct", crop_mode="crop_mode", interpolation="interpolation")
    crop = {"crop": DEIT_CROP}  # timm's for a file without, of small images, too
    for field, key in keys.items():
        if images.get(key):
            crop[field] = images[key]
    names = class_names.shortened(labels(images | config, classes))
    if not names and "." in full_name:  # else it may have learned other classes
        names = registry.published_class_names(full_name, classes)
    model = ModelSpec.from_fields(normalization | {"image_size": size} | fields)
    found = {"spec": model, "sizes": sizes, "crop": crop, "class_names": names}
    return found | {"license": images.get("license")}


def _full_name(name, tag, stated, arguments):
    """The name with its tag, or without where the model is not the published one.

    A fine-tuned model has the tag of the weights it started from. With other classes,
    images or arguments it was trained with the functions of timm's architecture, such
    as exact GELU for CLIP's weights, not with those that the tag stands for.

    stated: fields of the file, in which it has to agree with the published model
    """
    full_name = f"{name}.{tag}"
    if not tag or not registry.is_known(full_name) or not {*arguments} <= {*WRITTEN}:
        return name
    published = registry.fields_of(full_name)
    pool = published["arch"].pool
    if POOLS.get(arguments.get("global_pool"), pool) != pool:
        return name
    for field, value in stated.items():
        if published.get(field) != value:
            return name
    return full_name


def labels(config: Mapping[str, Any], classes: int | None):
    """Descriptions of the labels where there are any, else their names; or None."""
    names = config.get("label_names")
    if not names:
        return None
    if isinstance(names, Mapping):  # by number, some of which may lack
        names = [names.get(str(i)) for i in range(classes)]
    described = config.get("label_descriptions") or {}
    return tuple(described.get(name, name) for name in names)


def _arguments(arguments, name):
    """(fields that no tensor shows, sizes) by the name and model_args."""
    arch = ModelSpec(name=name).architecture
    changes = {}
    for field, value in arguments.items():
        path = f"model_args.{field}"
        if field == "num_heads":
            changes[field] = value
        elif field == "act_layer" and not is_eva(arch):
            acts = TIMM_GELUS | {None: "exact"}
            if arch.mlp == "swiglu":
                acts = SILUS
            check_choice(path, value, acts)
            changes["gelu"] = acts[value]
        elif field == "norm_layer":
            check_choice(path, value, NORMS)
            changes["norm_eps"] = NORMS[value]
        elif field in ABSENT:
            check_choice(path, value, ABSENT[field])
        elif field not in (*PARTS, *SIZES, *IDLE):
            raise InputError(f"{path} is {value!r}, which no model here has")
    sizes = size_of(name).fields
    heads = sizes.pop("num_heads")
    if {"mlp_ratio", "embed_dim"} & {*arguments}:
        # timm's counts packed layers twice, and is rounded down to widths: see tensors.
        del sizes["mlp_ratio"]
    other_sizes = {}
    parts = {}
    for field, value in arguments.items():
        # None is as a missing argument, but for two.
        if value is None and field not in ("init_values", "fc_norm"):
            continue
        if field in SIZES:
            other_sizes[field] = value
        elif field in PARTS:
            parts[field] = value
    sizes |= other_sizes
    if not parts and not other_sizes and "mlp_ratio" not in arguments:
        return {"name": name} | changes, sizes
    arch = changed_architecture(arch, parts)
    return {"name": name, "arch": arch, "num_heads": heads} | changes, sizes


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
# {(mlp, norm_eps, dist_token), which no argument sets: the architecture that has them}
BASES = {
    ("gelu", EPS, False): "vit_base_patch16_224",
    ("gelu", 1e-5, False): "vit_base_patch16_clip_224",
    ("swiglu", EPS, False): "vit_giant_patch14_dinov2",
    ("gelu", EPS, True): "deit_base_distilled_patch16_224",
}


def describe_timm(vit: Pretrained) -> dict[str, Any]:
    """The content of a config.json by which timm makes the dense part of a Pretrained.

    Without "architecture" where timm has no such models.
    """
    model = vit.model
    images = vit.preprocessing
    size = images.image_size
    crop = {}
    names = vit.class_names
    if images.resizes:
        way = images.as_json
        crop = {"crop_pct": way["crop"], "crop_mode": way["crop_mode"]}
        crop["interpolation"] = way["interpolation"]
    heads = "head"
    if model.arch.dist_token:
        heads = ["head", "head_dist"]
    if names and None in names:  # then by number
        names = {str(i): name for i, name in enumerate(names) if name is not None}
    named = {}
    if names:
        named["label_names"] = names
    terms = {}
    if vit.source is not None and vit.source.license:
        terms["license"] = vit.source.license
    return {
        **_architecture(model, size),
        "num_classes": model.num_classes,
        "num_features": model.embed_dim,
        **named,
        "pretrained_cfg": {
            "input_size": [3, *sides(size)],
            "fixed_input_size": True,
            "mean": model.mean,
            "std": model.std,
            "num_classes": model.num_classes,
            **crop,
            **terms,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": heads,
        },
    }


def _architecture(model: ViT, image_size) -> dict[str, Any]:
    """The fields "architecture" and "model_args"; {} where timm cannot make the model.

    The architecture is a public model of the same parts and sizes, if possible for
    images of the same size, else one of BASES with arguments for all parts.
    """
    arch = model.arch
    size = _size(model)
    eva = is_eva(arch)
    # Not compared: how positions are resized, which is over, and a GELU that
    # "act_layer" sets.
    ignored = {"resize": DEIT.resize}
    if not eva:
        ignored["gelu"] = DEIT.gelu
    parts = dataclasses.replace(arch, **ignored)
    same = []
    for name in registry.public_models():
        theirs = dataclasses.replace(registry.fields_of(name)["arch"], **ignored)
        if theirs == parts and size_of(name).fields == size:
            same.append(name)
    same.sort(key=lambda name: registry.fields_of(name).get("image_size") != image_size)
    arguments = {"img_size": image_size}
    if arch.mlp != "swiglu" and not eva:
        gelus = {ours: theirs for theirs, ours in TIMM_GELUS.items()}
        arguments["act_layer"] = gelus[arch.gelu]
    if same and model.stem == "patch":
        return {"architecture": same[0], "model_args": arguments}
    # A smaller epsilon than any of timm's becomes its smallest, which hardly changes
    # outputs.
    norm_eps = max(arch.norm_eps, EPS)
    base = BASES.get((arch.mlp, norm_eps, arch.dist_token))
    if base is None or not _is_vision_transformer(model):
        return {}
    return {"architecture": base, "model_args": arguments | _all_arguments(model)}


def _is_vision_transformer(model: ViT) -> bool:
    """Whether arguments of timm's VisionTransformer can make the model."""
    arch = model.arch
    if model.stem != "patch" or is_eva(arch) or arch.post_norm or arch.pool_heads:
        return False
    # timm's class with that token adds positions to all tokens in front.
    plain = arch.prefix_positions and not (arch.registers or arch.fc_norm)
    if arch.dist_token and not plain:
        return False
    if arch.mlp == "swiglu" and not arch.layer_scale:  # its base has it
        return False
    return arch.patch_bias != arch.pre_norm and not (arch.final_norm and arch.fc_norm)


def _all_arguments(model: ViT) -> dict[str, Any]:
    """All arguments of timm's VisionTransformer that make the parts of a model."""
    arch = model.arch
    hidden = round(model.embed_dim * model.mlp_ratio)
    if arch.mlp == "swiglu":  # two layers in one
        hidden *= 2
    ratio = hidden / model.embed_dim
    if int(model.embed_dim * ratio) < hidden:  # which is what timm takes
        ratio = math.nextafter(ratio, math.inf)
    pools = {ours: theirs for theirs, ours in POOLS.items()}
    init_values = None
    if arch.layer_scale:
        init_values = 1e-5
    return {
        **_size(model),
        **{name: getattr(arch, field) for name, field in FIELD_OF_ARGUMENT.items()},
        "mlp_ratio": ratio,
        "init_values": init_values,
        "no_embed_class": not arch.prefix_positions,
        "global_pool": pools[arch.pool],
        "final_norm": arch.final_norm or arch.fc_norm,
        "fc_norm": arch.fc_norm,
    }


def _size(model: ViT) -> dict[str, Any]:
    return {field: getattr(model, field) for field in SIZE_FIELDS}
