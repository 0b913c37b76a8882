"""timm's form of config.json: an architecture by name, its arguments, its images.

`parse` reads it, `describe` writes it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError, one_of, suggestion
from imagepiece_jax.models import imagenet_classes, public, registry
from imagepiece_jax.models.architecture import DEIT, Architecture
from imagepiece_jax.models.vit import ViT

GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick"}
SILUS = {"silu": "exact", "swish": "exact"}  # of a gated MLP, which has no GELU
POOLS = {"token": "token", "avg": "mean", "map": "map"}
NORMS = {"layernorm": 1e-6, "layer_norm": 1e-6}  # the epsilon of timm's LayerNorm
# Of model_args, those that change parts of an Architecture, sizes, and those that
# change no logits, or nothing that tensors do not tell.
PARTS = ("class_token", "no_embed_class", "reg_tokens", "pre_norm", "qkv_bias")
PARTS += ("init_values", "global_pool", "pool_include_prefix", "final_norm", "fc_norm")
SIZES = ("patch_size", "embed_dim", "depth")
IDLE = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate")
IDLE += ("attn_drop_rate", "drop_path_rate", "weight_init", "fix_init")
IDLE += ("dynamic_img_size", "strict_img_size", "img_size", "num_classes", "mlp_ratio")
EPS = 1e-6  # of norms, the smallest that timm's architectures have
# Architectures that others are made of by arguments, by what those cannot say.
BASES = {
    ("gelu", EPS, False): "vit_base_patch16_224",
    ("gelu", 1e-5, False): "vit_base_patch16_clip_224",
    ("swiglu", EPS, False): "vit_giant_patch14_dinov2",
    ("gelu", EPS, True): "deit_base_distilled_patch16_224",
}
# Parts that only timm's class Eva has.
EVA = ("positions", "rotary", "key_bias", "attn_norm", "mlp_norm")


def parse(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a HubConfig; what was written before timm 0.9 is flat."""
    images = config.get("pretrained_cfg", config)
    name, classes = config["architecture"], _classes(config, images)
    if name not in registry.MODELS and public.model(name) is None:
        known = [*public.table(), *registry.MODELS]
        hint = suggestion(str(name), known, "allowed are timm's ViTs")
        raise InputError(f"architecture is {name!r}; {hint}")
    arguments = config.get("model_args") or {}
    _, height, width = images["input_size"]
    size = arguments.get("img_size") or (height, width)
    size = sides(size)[0] if len({*sides(size)}) == 1 else tuple(size)
    values = {"mean": tuple(images["mean"]), "std": tuple(images["std"])}
    known = _known(name, images.get("tag"), values | {"num_classes": classes})
    says, sizes = _arguments(arguments, known)
    if known == name and name in public.table():  # trained by timm's code
        says = public.timms_own(name) | says
    told = sizes if classes is None else {"num_classes": classes} | sizes
    if images.get("fixed_input_size", True):
        told = told | {"image_size": size}
    own = {"crop": "crop_pct", "crop_mode": "crop_mode"}
    own |= {"interpolation": "interpolation"}
    prepared = {k: images.get(theirs) for k, theirs in own.items()}
    return {
        "given": values | {"image_size": size} | says,
        "told": told,
        "preprocessing": {k: v for k, v in prepared.items() if v is not None},
        "class_names": labels(images | config, classes)
        or imagenet_classes.names_of(known, classes),
    }


def _classes(config, images):
    return config.get("num_classes", images.get("num_classes"))


def _known(name, tag, own):
    """The name with its tag, or without where it was trained further.

    A fine-tuned model keeps the tag of what it started from. It has other classes or
    images, though, and was trained with the functions of timm's architecture, such as
    exact GELU for CLIP's weights, not with those that the tag stands for.
    """
    published = public.model(f"{name}.{tag}") if tag else None
    same = published and all(published.get(k) == v for k, v in own.items())
    return f"{name}.{tag}" if same else name


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
    """(what the name and model_args say that no tensor tells, sizes that they say)."""
    arch, changes = registry.architecture({"name": name}), {}
    for field, value in arguments.items():
        if field == "num_heads":
            changes[field] = value
        elif field == "act_layer" and arch.mlp == "swiglu" and not is_eva(arch):
            one_of(f"model_args.{field}", value, SILUS)
        elif field == "act_layer" and not is_eva(arch):
            changes["gelu"] = one_of(f"model_args.{field}", value, GELUS)
        elif field == "norm_layer":
            changes["norm_eps"] = one_of(f"model_args.{field}", value, NORMS)
        elif field == "in_chans":
            one_of(f"model_args.{field}", value, {3: 3})
        elif field not in (*PARTS, *SIZES, *IDLE):
            raise InputError(f"model_args has {field}={value!r}, which no model has")
    sizes = {k: v for k, v in arguments.items() if k in SIZES and v is not None}
    own = registry.size_of(registry.facts(name))
    own = {k: own[k] for k in (*SIZES, "mlp_ratio") if k in own}
    if {"mlp_ratio", "embed_dim"} & {*arguments}:
        # timm's counts packed layers twice, and is cut to whole widths: tensors tell.
        del own["mlp_ratio"]
    told = own | sizes
    null = ("init_values", "fc_norm")  # where None is not what is left out
    parts = {k: v for k, v in arguments.items() if k in PARTS}
    parts = {k: v for k, v in parts.items() if v is not None or k in null}
    if not parts and not sizes and "mlp_ratio" not in arguments:
        return {"name": name} | changes, told
    arch = _changed(arch, parts)
    heads = registry.facts(name)["num_heads"]
    given = {"name": name, "arch": dataclasses.asdict(arch), "num_heads": heads}
    return given | changes, told


def _changed(arch: Architecture, arguments) -> Architecture:
    """An Architecture changed by arguments of timm's VisionTransformer, or Eva."""
    found, eva = _with_arguments(arch, arguments), is_eva(arch)
    if eva:  # which has no argument for it
        reads = found.pool == "map" and found.prefix > 0
        found = dataclasses.replace(found, pool_include_prefix=reads)
    heads = ("pool", "pool_include_prefix", "final_norm", "fc_norm")
    same = {field: getattr(arch, field) for field in heads}
    asked = "pool_include_prefix" in arguments
    if eva and (asked or dataclasses.replace(found, **same) != arch):
        raise InputError(
            f"model_args has {', '.join(arguments)} for a model with rotary positions; "
            "allowed are its own parts, and another global_pool"
        )
    return found


def _with_arguments(arch, arguments):
    ours = {"class_token": "class_token", "reg_tokens": "registers"}
    ours |= {"qkv_bias": "qkv_bias", "pre_norm": "pre_norm"}
    ours |= {"pool_include_prefix": "pool_include_prefix"}
    found = {ours[k]: v for k, v in arguments.items() if k in ours}
    if "pre_norm" in found:
        found["patch_bias"] = not found["pre_norm"]
    if "init_values" in arguments:
        found["layer_scale"] = bool(arguments["init_values"])
    if "no_embed_class" in arguments:
        found["prefix_positions"] = not arguments["no_embed_class"]
    if {"global_pool", "final_norm", "fc_norm"} & {*arguments}:
        found |= _head(arch, arguments)
    arch = dataclasses.replace(arch, **found)
    return arch if arch.prefix else dataclasses.replace(arch, prefix_positions=True)


def _head(arch, arguments):
    """pool, final_norm and fc_norm; without a word on it a mean has its norm behind."""
    usual = None if arch.fc_norm == (arch.pool == "mean") else arch.fc_norm
    pool, behind = arch.pool, arguments.get("fc_norm", usual)
    if "global_pool" in arguments:
        pool = one_of("model_args.global_pool", arguments["global_pool"], POOLS)
    behind = pool == "mean" if behind is None else behind
    normed = arguments.get("final_norm", arch.final_norm or arch.fc_norm)
    return {
        "pool": pool,
        "final_norm": normed and not behind,
        "fc_norm": normed and behind,
    }


def describe(model: ViT) -> dict[str, Any]:
    """The content of a config.json by which timm makes the dense part of a model.

    Without "architecture" where timm has no such models.
    """
    known = dataclasses.asdict(model.preprocessing)
    size, crop = known.pop("image_size"), known.pop("crop")
    heads = ["head", "head_dist"] if model.arch.dist_token else "head"
    labels = _labels(model.class_names)
    return {
        **_architecture(model),
        "num_classes": model.num_classes,
        "num_features": model.embed_dim,
        **({"label_names": labels} if labels else {}),
        "pretrained_cfg": {
            "input_size": [3, *sides(size)],
            "fixed_input_size": True,
            "mean": model.mean,
            "std": model.std,
            "num_classes": model.num_classes,
            **({} if crop is None else {"crop_pct": crop} | known),
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": heads,
        },
    }


def is_eva(arch: Architecture) -> bool:
    """Whether timm has it as its class Eva, not as VisionTransformer."""
    return any(getattr(arch, field) != getattr(DEIT, field) for field in EVA)


def _labels(names):
    """A list, or where some classes have no name those that have one by number."""
    if names is None or None not in names:
        return names
    return {str(i): name for i, name in enumerate(names) if name is not None}


def _architecture(model):
    """timm's architecture and its arguments; {} where timm has none."""
    arch, image_size = model.arch, model.preprocessing.image_size
    size, eva = _size(model), is_eva(arch)
    plain = {"resize": DEIT.resize} | ({} if eva else {"gelu": DEIT.gelu})
    parts = dataclasses.replace(arch, **plain)
    same = [
        name
        for name in public.table()
        if registry.size_of(facts := registry.facts(name)) == size
        and dataclasses.replace(facts["arch"], **plain) == parts
    ]
    same.sort(key=lambda name: registry.facts(name).get("image_size") != image_size)
    arguments = {"img_size": image_size}
    if arch.mlp != "swiglu" and not eva:
        gelus = {ours: theirs for theirs, ours in GELUS.items()}
        arguments["act_layer"] = gelus[arch.gelu]
    if same and model.stem == "patch":
        return {"architecture": same[0], "model_args": arguments}
    # Less than timm adds to variances is next to the same; the model card names it.
    base = BASES.get((arch.mlp, max(arch.norm_eps, EPS), arch.dist_token))
    if base is None or not _is_vision_transformer(model):
        return {}
    return {"architecture": base, "model_args": arguments | _all_arguments(model)}


def _is_vision_transformer(model):
    """Whether arguments of timm's VisionTransformer can say what the model is."""
    arch = model.arch
    if model.stem != "patch" or is_eva(arch):
        return False
    if arch.dist_token and arch.registers:
        return False
    if arch.mlp == "swiglu" and not arch.layer_scale:  # its base has it
        return False
    return arch.patch_bias != arch.pre_norm and not (arch.final_norm and arch.fc_norm)


def _all_arguments(model):
    """All arguments of timm's VisionTransformer that make the parts of a model."""
    arch, hidden = model.arch, round(model.embed_dim * model.mlp_ratio)
    hidden *= 2 if arch.mlp == "swiglu" else 1  # two layers in one
    ratio = hidden / model.embed_dim
    if int(model.embed_dim * ratio) < hidden:  # which is what timm takes
        ratio = math.nextafter(ratio, math.inf)
    pools = {ours: theirs for theirs, ours in POOLS.items()}
    return {
        **_size(model),
        "mlp_ratio": ratio,
        "qkv_bias": arch.qkv_bias,
        "init_values": 1e-5 if arch.layer_scale else None,
        "class_token": arch.class_token,
        "reg_tokens": arch.registers,
        "no_embed_class": not arch.prefix_positions,
        "pre_norm": arch.pre_norm,
        "global_pool": pools[arch.pool],
        "pool_include_prefix": arch.pool_include_prefix,
        "final_norm": arch.final_norm or arch.fc_norm,
        "fc_norm": arch.fc_norm,
    }


def _size(model):
    own = [field for field in registry.SIZES if field != "depth"]
    return {"depth": len(model.plan), **{field: getattr(model, field) for field in own}}
