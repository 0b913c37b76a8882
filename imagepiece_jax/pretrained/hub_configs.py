"""What config.json and preprocessor_config.json say of published weights.

Both forms of the Hugging Face hub are read, timm's and transformers'. `describe` writes
timm's, with a part of our own that says all of a model. transformers leaves out of a
file what is as in the defaults of its model type, so that these stand here (its
configuration classes, version 5.23).
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.version import __version__
from imagepiece_jax.data import class_names
from imagepiece_jax.errors import InputError, one_of
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT, Architecture
from imagepiece_jax.models.config import SIZE_FIELDS, ModelConfig, size_of
from imagepiece_jax.models.rotary import Rotary

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of images and of text, since transformers 5
OURS = "imagepiece_jax"  # the part of a config.json that is this package's own


@dataclasses.dataclass(frozen=True)
class Tower:
    """How a language model reads the vision tower that it holds.

    depth: the blocks that are run, and no norm behind them; None: all that is there
    blocks: that the tower has
    gelu: between layers of the projector
    prefix: whether it reads the class token, too
    layers, bias: how many layers the projector has, and whether with biases; None: as
    it is in the file
    """

    depth: int | None = None
    blocks: int | None = None
    gelu: str = "exact"
    prefix: bool = False
    layers: int | None = None
    bias: bool | None = None


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """What a published model's config files say.

    config: what no tensor shows; sizes: what tensors show too; preprocessing: fields of
    a Preprocessing but the size; reduction: of a model that this package saved;
    class_names: by label, None for a class without; untrained: whether its selectors
    were drawn, not learned; tower: of a model that is one, beside a projector.
    """

    config: ModelConfig
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reduction: Mapping[str, Any] | None = None
    class_names: tuple[str | None, ...] | None = None
    untrained: bool = False
    tower: Tower | None = None


def read(folder: pathlib.Path) -> HubConfig:
    """The HubConfig of a folder with a config.json, and maybe preprocessor_config.json.

    A preprocessor_config.json beside it is read too, where there is one, or what a
    processor_config.json has in its place.
    Raises InputError, with the file's name, for what cannot be read or understood.
    """
    config = read_json(folder / CONFIG)
    images = {}
    if (folder / PROCESSOR).is_file():
        images = read_json(folder / PROCESSOR).get("image_processor") or {}
    if not images and (folder / PREPROCESSOR).is_file():
        images = read_json(folder / PREPROCESSOR)
    try:
        return parse(config, images)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def is_own(folder: pathlib.Path) -> bool:
    """Whether a folder's config.json is of a model that this package saved."""
    try:
        return OURS in read_json(folder / CONFIG)
    except InputError:
        return False


def parse(config: Mapping[str, Any], images: Mapping[str, Any]) -> HubConfig:
    """As `read`, from the contents of config.json and of preprocessor_config.json."""
    if OURS in config:
        return _checked(_guarded(CONFIG, _parse_ours, config))
    if "architecture" in config:
        return _checked(_guarded(CONFIG, parse_timm, config))
    parsed = _guarded(CONFIG, parse_transformers, config)
    normalization, crop = _guarded(PREPROCESSOR, processor, images, config)
    whole = parsed.config.over(ModelConfig(**normalization))
    return _checked(dataclasses.replace(parsed, config=whole, preprocessing=crop))


def _checked(parsed):
    """`parsed`, whose size of images is one, as far as there is one."""
    size = parsed.config.image_size or 1
    right = [isinstance(side, int) and side > 0 for side in sides(size)]
    if right not in ([True], [True, True]):
        raise InputError(
            f"{CONFIG}: the size of images is {size!r}; allowed: one or two numbers "
            "of pixels"
        )
    return parsed


def _guarded(file, call, *content):
    """What `call` makes of a file's content, whose mistakes are named with the file."""
    try:
        return call(*content)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except KeyError as error:
        raise InputError(
            f"{file} has no {error.args[0]}; allowed: the file as timm, transformers "
            "or save wrote it"
        ) from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(f"{file} has a field of another type: {error}") from error


def describe(vit) -> dict[str, Any]:
    """The content of a config.json by which `load` makes a Pretrained again.

    timm makes its dense part of it, where it has an architecture that is not OURS.
    """
    model, prepared = vit.model, dataclasses.asdict(vit.preprocessing)
    size, crop = prepared.pop("image_size"), prepared["crop"]
    projector = vit.projector and {
        field: getattr(vit.projector, field) for field in ("gelu", "prefix")
    }
    ours = {
        "version": __version__,
        "model": {
            "name": vit.name,
            "arch": dataclasses.asdict(model.arch),
            "num_heads": model.num_heads,
            "image_size": size,
            "mean": model.mean,
            "std": model.std,
        },
        "preprocessing": {} if crop is None else prepared,
        "reduction": {**vit.reduction, "prop_attn": model.prop_attn},
        "dtype": model.dtype.name,
        **({"untrained": True} if vit.untrained else {}),
        **({"projector": projector} if projector else {}),
    }
    return {"architecture": OURS} | describe_timm(vit) | {OURS: ours}


def _parse_ours(config):
    """Our own part of what `describe` wrote."""
    ours, classes = config[OURS], config["num_classes"]
    if not isinstance(ours["model"]["arch"], Mapping):
        raise TypeError(f"arch is {ours['model']['arch']!r}")
    fields = {k: _plain(v) for k, v in ours["model"].items()}
    names = labels(config, classes)
    if names == class_names.imagenet_lemmas():  # as earlier versions saved them
        names = class_names.imagenet_names()
    return HubConfig(
        ModelConfig(dtype=ours["dtype"], **fields),
        {"num_classes": classes},
        ours["preprocessing"],
        {k: _plain(v) for k, v in ours["reduction"].items()},
        names,
        bool(ours.get("untrained", False)),
        Tower(**ours["projector"]) if "projector" in ours else None,
    )


def _plain(value):
    return tuple(_plain(v) for v in value) if isinstance(value, list) else value


TIMM_GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick"}
SILUS = {"silu": "exact", "swish": "exact"}  # of a gated MLP, which has no GELU
POOLS = {"token": "token", "avg": "mean", "map": "map"}
NORMS = {"layernorm": 1e-6, "layer_norm": 1e-6}  # the epsilon of timm's LayerNorm
# Of model_args, those that change parts of an Architecture, sizes, and those that
# change no logits, or nothing that tensors do not show.
PARTS = ("class_token", "no_embed_class", "reg_tokens", "pre_norm", "qkv_bias")
PARTS += ("init_values", "global_pool", "pool_include_prefix", "final_norm", "fc_norm")
SIZES = ("patch_size", "embed_dim", "depth")
IDLE = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate")
IDLE += ("attn_drop_rate", "drop_path_rate", "weight_init", "fix_init")
IDLE += ("dynamic_img_size", "strict_img_size", "img_size", "num_classes", "mlp_ratio")
# The arguments that timm writes of every model, also of a published one.
WRITTEN = ("in_chans", "img_size", "num_classes", "global_pool")
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


def parse_timm(config: Mapping[str, Any]) -> HubConfig:
    """A HubConfig; what was written before timm 0.9 is flat."""
    images = config.get("pretrained_cfg", config)
    name, classes = config["architecture"], _classes(config, images)
    if name not in registry.MODELS and registry.public_facts(name) is None:
        hint = registry.instead_of(str(name))
        raise InputError(f"architecture is {name!r}; {hint}")
    arguments = config.get("model_args") or {}
    _, height, width = images["input_size"]
    size = arguments.get("img_size") or (height, width)
    size = sides(size)[0] if len({*sides(size)}) == 1 else tuple(size)
    values = {"mean": tuple(images["mean"]), "std": tuple(images["std"])}
    own = values | {"num_classes": classes, "image_size": size}
    whole_name = _known(name, images.get("tag"), own, arguments)
    says, sizes = _arguments(arguments, whole_name)
    if whole_name == name and name in registry.public_models():
        # Trained by timm's code.
        says = registry.timm_functions(name) | says
    if classes is not None:
        sizes = {"num_classes": classes} | sizes
    if images.get("fixed_input_size", True):
        sizes = sizes | {"image_size": size}
    tagged = "." in whole_name  # without, it may have been trained on other classes
    keys = {"crop": "crop_pct", "crop_mode": "crop_mode"}
    keys |= {"interpolation": "interpolation"}
    crop = {k: images[key] for k, key in keys.items() if images.get(key) is not None}
    return HubConfig(
        ModelConfig(**values | {"image_size": size} | says),
        sizes,
        crop,
        class_names=class_names.shortened(labels(images | config, classes))
        or (registry.published_class_names(whole_name, classes) if tagged else None),
    )


def _classes(config, images):
    return config.get("num_classes", images.get("num_classes"))


def _known(name, tag, own, arguments):
    """The name with its tag, or without where the model is not as it was published.

    A model keeps the tag of what it started from. With other classes, images or
    arguments it was trained with the functions of timm's architecture, such as exact
    GELU for CLIP's weights, not with those that the tag stands for.
    """
    published = registry.public_facts(f"{name}.{tag}") if tag else None
    if published is None or not {*arguments} <= {*WRITTEN}:
        return name
    pool = published["arch"].pool
    same = POOLS.get(arguments.get("global_pool"), pool) == pool
    same = same and all(published.get(k) == v for k, v in own.items())
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
    """(what the name and model_args say that no tensor shows, sizes that they say)."""
    arch, changes = ModelConfig(name=name).architecture, {}
    for field, value in arguments.items():
        if field == "num_heads":
            changes[field] = value
        elif field == "act_layer" and arch.mlp == "swiglu" and not is_eva(arch):
            one_of(f"model_args.{field}", value, SILUS)
        elif field == "act_layer" and not is_eva(arch):
            changes["gelu"] = one_of(f"model_args.{field}", value, TIMM_GELUS)
        elif field == "norm_layer":
            changes["norm_eps"] = one_of(f"model_args.{field}", value, NORMS)
        elif field == "in_chans":
            one_of(f"model_args.{field}", value, {3: 3})
        elif field not in (*PARTS, *SIZES, *IDLE):
            raise InputError(f"model_args has {field}={value!r}, which no model has")
    others = {k: v for k, v in arguments.items() if k in SIZES and v is not None}
    usual = size_of(name).stated
    usual = {k: usual[k] for k in (*SIZES, "mlp_ratio") if k in usual}
    if {"mlp_ratio", "embed_dim"} & {*arguments}:
        # timm's counts packed layers twice, and is cut to whole widths: see tensors.
        del usual["mlp_ratio"]
    sizes = usual | others
    null = ("init_values", "fc_norm")  # where None is not what is left out
    parts = {k: v for k, v in arguments.items() if k in PARTS}
    parts = {k: v for k, v in parts.items() if v is not None or k in null}
    if not parts and not others and "mlp_ratio" not in arguments:
        return {"name": name} | changes, sizes
    arch = _changed(arch, parts)
    heads = registry.facts(name)["num_heads"]
    return {"name": name, "arch": arch, "num_heads": heads} | changes, sizes


def _changed(arch: Architecture, arguments) -> Architecture:
    """An Architecture changed by arguments of timm's VisionTransformer, or Eva."""
    changed, eva = _with_arguments(arch, arguments), is_eva(arch)
    if eva:  # which has no argument for it
        reads = changed.pool == "map" and changed.prefix > 0
        changed = dataclasses.replace(changed, pool_include_prefix=reads)
    heads = ("pool", "pool_include_prefix", "final_norm", "fc_norm")
    same = {field: getattr(arch, field) for field in heads}
    asked = "pool_include_prefix" in arguments
    if eva and (asked or dataclasses.replace(changed, **same) != arch):
        raise InputError(
            f"model_args has {', '.join(arguments)} for a model with rotary positions; "
            "allowed: its own parts, and another global_pool"
        )
    return changed


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
    if arch.dist_token and behind:  # timm makes this norm, and none that it computes
        raise InputError(
            "model_args has fc_norm=True for a model with a distillation token; "
            "allowed: False"
        )
    normed = arguments.get("final_norm", arch.final_norm or arch.fc_norm)
    return {
        "pool": pool,
        "final_norm": normed and not behind,
        "fc_norm": normed and behind,
    }


def describe_timm(vit) -> dict[str, Any]:
    """The content of a config.json by which timm makes the dense part of a Pretrained.

    Without "architecture" where timm has no such models.
    """
    model, prepared = vit.model, dataclasses.asdict(vit.preprocessing)
    size, crop = prepared.pop("image_size"), prepared.pop("crop")
    heads = ["head", "head_dist"] if model.arch.dist_token else "head"
    labels = _labels(vit.class_names)
    return {
        **_architecture(model, size),
        "num_classes": model.num_classes,
        "num_features": model.embed_dim,
        **({"label_names": labels} if labels else {}),
        "pretrained_cfg": {
            "input_size": [3, *sides(size)],
            "fixed_input_size": True,
            "mean": model.mean,
            "std": model.std,
            "num_classes": model.num_classes,
            **({} if crop is None else {"crop_pct": crop} | prepared),
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


def _architecture(model, image_size):
    """timm's architecture and its arguments; {} where timm has none."""
    arch = model.arch
    size, eva = _size(model), is_eva(arch)
    plain = {"resize": DEIT.resize} | ({} if eva else {"gelu": DEIT.gelu})
    parts = dataclasses.replace(arch, **plain)
    same = [
        name
        for name in registry.public_models()
        if size_of(name).stated == size
        and dataclasses.replace(registry.facts(name)["arch"], **plain) == parts
    ]
    same.sort(key=lambda name: registry.facts(name).get("image_size") != image_size)
    arguments = {"img_size": image_size}
    if arch.mlp != "swiglu" and not eva:
        gelus = {ours: theirs for theirs, ours in TIMM_GELUS.items()}
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
    if arch.dist_token and (arch.registers or arch.fc_norm):
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
    fields = [field for field in SIZE_FIELDS if field != "depth"]
    return {
        "depth": len(model.plan),
        **{field: getattr(model, field) for field in fields},
    }


# Activations by their names; those of one kind differ in rounding alone.
GELUS = {"gelu": "exact", "gelu_python": "exact", "quick_gelu": "quick"}
GELUS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh"), "tanh")
GELUS |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "tanh")
# Fields that are numbers of something.
WHOLE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
RESCALE = 1 / 255


@dataclasses.dataclass(frozen=True)
class ModelType:
    """A model type of transformers.

    fields: the defaults of its configuration class; resize: how its code interpolates
    positions; resample: its image processor's own; square: whether a size that is one
    number means both sides there; parts: (fields) -> what tensors show too; arch:
    (fields) -> the parts, where no tensor shows them all, nor an image size; inner: the
    parts up to a block of it that is not the last.
    """

    fields: Mapping[str, Any]
    resize: str
    resample: int
    square: bool = True
    parts: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda fields: {}
    arch: Callable[[Mapping[str, Any]], Architecture] | None = None
    inner: Architecture | None = None


def _hidden(fields):
    return {"mlp_ratio": fields["intermediate_size"] / fields["hidden_size"]}


def _dinov2(fields):
    hidden = int(fields["hidden_size"] * fields["mlp_ratio"])
    if fields["use_swiglu_ffn"]:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return {"mlp_ratio": hidden / fields["hidden_size"]}


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
_DINOV3 = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6)
_DINOV3 |= dict(image_size=224, patch_size=16, num_channels=3, intermediate_size=1536)
_DINOV3 |= dict(hidden_act="gelu", layer_norm_eps=1e-5, use_gated_mlp=False)
_DINOV3 |= dict(num_register_tokens=0, rope_theta=100.0, query_bias=True)
_DINOV3 |= dict(key_bias=False)
MODEL_TYPES = {
    "vit": ModelType(_VIT, "bicubic", 2, parts=_hidden),
    "deit": ModelType(_VIT, "bicubic", 3, parts=_hidden),
    "dinov2": ModelType(
        _DINOV2 | {"patch_size": 14}, "bicubic", 3, square=False, parts=_dinov2
    ),
    "dinov2_with_registers": ModelType(
        _DINOV2, "antialias", 3, square=False, parts=_dinov2
    ),
    "clip_vision_model": ModelType(
        _CLIP,
        "bicubic",
        3,
        square=False,
        parts=_hidden,
        inner=Architecture(patch_bias=False, pre_norm=True, final_norm=False),
    ),
    "siglip_vision_model": ModelType(
        _SIGLIP,
        "bicubic",
        3,
        parts=_hidden,
        inner=Architecture(class_token=False, pool="mean", final_norm=False),
    ),
    "dinov3_vit": ModelType(_DINOV3, "antialias", 2, parts=_hidden, arch=_dinov3),
}


@dataclasses.dataclass(frozen=True)
class Host:
    """A model type of transformers that holds a vision tower.

    kinds: model types of the tower, the usual one first; fields: of the tower where the
    config has none; tower: (config, fields of the tower, its ModelType) -> how the rest
    reads it, of hosts with a projector.
    """

    kinds: tuple[str, ...]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tower: Callable[..., Tower] | None = None


def _llava(config, fields, model):
    """The last block is left out, unless the config names another layer."""
    blocks, layer = fields["num_hidden_layers"], config.get("vision_feature_layer", -2)
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    depth = layer + (blocks + 1) * (layer < 0) if whole else 0
    if not 1 <= depth <= blocks:
        raise InputError(
            f"vision_feature_layer is {layer!r}; allowed: one layer, 1 to {blocks}, "
            f"and -{blocks} to -1"
        )
    strategy = config.get("vision_feature_select_strategy", "default")
    prefix = one_of(
        "vision_feature_select_strategy", strategy, {"default": False, "full": True}
    )
    if not prefix and not model.inner.class_token:
        raise InputError(
            "vision_feature_select_strategy is 'default', which drops the class token, "
            "and the tower has none; allowed: 'full'"
        )
    act = config.get("projector_hidden_act", "gelu")
    return Tower(
        depth,
        blocks,
        gelu=one_of("projector_hidden_act", act, GELUS),
        prefix=prefix,
        layers=2,
        bias=bool(config.get("multimodal_projector_bias", True)),
    )


_L14 = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
_L14 |= dict(image_size=336, patch_size=14, intermediate_size=4096)
_SO14 = dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16)
_SO14 |= dict(image_size=224, patch_size=14, intermediate_size=4096)
PALIGEMMA = Tower(layers=1, bias=True)
HOSTS = {
    "clip": Host(("clip_vision_model",)),
    "siglip": Host(("siglip_vision_model",)),
    "llava": Host(("clip_vision_model", "siglip_vision_model"), _L14, _llava),
    "paligemma": Host(("siglip_vision_model",), _SO14, lambda *_: PALIGEMMA),
}
# Tensors that are read of hosts with a projector; the rest is many times as much.
OF_TOWER = re.compile(r"(.*\.)?(vision_tower|multi_modal_projector)\.")


def has_tower(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a language model with a vision tower."""
    host = HOSTS.get(str(config.get("model_type")))
    return host is not None and host.tower is not None


def parse_transformers(config: Mapping[str, Any]) -> HubConfig:
    """A HubConfig of a config.json."""
    kind, fields = _kind(config), config
    host = HOSTS.get(config["model_type"])
    if host is not None:
        fields = config.get("vision_config") or host.fields
    model = MODEL_TYPES[kind]
    fields = model.fields | {k: v for k, v in fields.items() if k in model.fields}
    for field in {*fields} & {*WHOLE}:
        value = fields[field]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{field} is {value!r}; allowed: 1, 2, 3, ..")
    one_of("num_channels", fields["num_channels"], {3: 3})
    size, patch = _square(fields["image_size"]), _square(fields["patch_size"])
    classify = any("ImageClass" in name for name in config.get("architectures") or ())
    labels = config.get("id2label") if classify else None
    sizes = {"embed_dim": fields["hidden_size"], "depth": fields["num_hidden_layers"]}
    sizes |= {"patch_size": patch} | model.parts(fields)
    sizes |= {"num_classes": len(labels)} if labels else {}
    gated = fields.get("use_gated_mlp", False)
    acts = SILUS if gated else GELUS
    if model.arch is None:
        sizes["image_size"] = size
    whole = ModelConfig(
        num_heads=fields["num_attention_heads"],
        gelu=one_of("hidden_act", fields["hidden_act"], acts),
        norm_eps=float(fields["layer_norm_eps"]),
        resize=model.resize,
        image_size=size,
        arch=model.arch and model.arch(fields),
    )
    tower = host and host.tower and host.tower(config, fields, model)
    if tower and tower.depth:
        whole = dataclasses.replace(whole, arch=model.inner)
        sizes["depth"] = tower.depth
    names = class_names.shortened(_names(labels))
    return HubConfig(whole, sizes, class_names=names, tower=tower)


def processor(
    images: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(mean and std, fields of a Preprocessing) of a preprocessor_config.json.

    images, config: contents of it and of config.json
    Returns {} for what it does not say. Raises InputError for what no crop here does.
    """
    if not images:
        return {}, {}
    model = MODEL_TYPES[_kind(config)]
    if not images.get("do_rescale", True):
        raise InputError("do_rescale is False; allowed: True")
    if images.get("do_pad"):
        raise InputError("do_pad is True; allowed: False")
    factor = images.get("rescale_factor", RESCALE)
    if abs(factor - RESCALE) > 1e-6:
        raise InputError(f"rescale_factor is {factor!r}; allowed: 1/255")
    names = {"mean": "image_mean", "std": "image_std"}
    normalization = {
        k: tuple(images[name]) for k, name in names.items() if name in images
    }
    if not images.get("do_normalize", True):
        normalization = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
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
        raise InputError(
            f"size is {images['size']!r} and crop_size {cut!r}; allowed: a height "
            "and a width, or a crop_size of at most size"
        )
    mode = "squash" if squash else "center"
    return normalization, {
        "crop": crop,
        "crop_mode": mode,
        "interpolation": interpolation,
    }


def _kind(config):
    """The model type, of a host that of its vision tower."""
    name = config["model_type"]
    kind = one_of("model_type", name, {kind: kind for kind in (*MODEL_TYPES, *HOSTS)})
    if kind not in HOSTS:
        return kind
    usual, *others = HOSTS[kind].kinds
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
        raise InputError(f"a size is {tuple(size)!r}; allowed: squares")
    return height
