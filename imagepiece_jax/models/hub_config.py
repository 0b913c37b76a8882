"""What config.json and preprocessor_config.json say of published weights.

Both forms of the Hugging Face hub are read: timm's, which names an architecture and
how images are prepared, and transformers', whose fields are those of a model type.
transformers leaves out of a file what is as in the type's own defaults, so that the
defaults stand here (its configuration classes, version 5.23).
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from imagepiece_jax.errors import InputError, closest
from imagepiece_jax.models import imagenet_classes, public, registry

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
OURS = "imagepiece_jax"  # the part of a config.json that is this package's own
# Activations by transformers' names; those of one kind differ in rounding alone.
GELUS = {"gelu": "exact", "gelu_python": "exact", "quick_gelu": "quick"}
GELUS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh"), "tanh")
GELUS |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate"), "tanh")
TIMM_GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick"}
# Of timm's model_args, those that tensors tell, and those that no image's logits show.
TOLD = ("patch_size", "embed_dim", "depth", "mlp_ratio", "qkv_bias", "init_values")
TOLD += ("class_token", "no_embed_class", "reg_tokens", "pre_norm", "final_norm")
TOLD += ("fc_norm", "global_pool", "img_size", "num_classes")
IDLE = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate")
IDLE += ("attn_drop_rate", "drop_path_rate", "weight_init", "fix_init")
IDLE += ("dynamic_img_size", "strict_img_size")
# Fields of transformers that are numbers of something.
WHOLE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
RESCALE = 1 / 255


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """What a published model's config files say.

    given: what no tensor tells, as `infer_config` takes it; told: what tensors tell
    too; preprocessing: fields of a Preprocessing but the size; reduction and dtype: of
    a model that this package saved; class_names: by label, None for a class without.
    """

    given: Mapping[str, Any]
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reduction: Mapping[str, Any] | None = None
    dtype: str | None = None
    class_names: tuple[str | None, ...] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of create_model that are no matter of tensors."""
        found = {"preprocessing": self.preprocessing} if self.preprocessing else {}
        return found | ({"dtype": self.dtype} if self.dtype else {})

    def check(self, fields: Mapping[str, Any]) -> None:
        """InputError where `fields`, which tensors tell, are others than here."""
        for field, value in self.told.items():
            found = fields[field]
            if found != value:
                raise InputError(
                    f"{CONFIG} says {field} {value!r}, but its tensors have {found!r}; "
                    "allowed are files of one model"
                )


def read(folder: pathlib.Path) -> HubConfig:
    """The HubConfig of a folder with a config.json; InputError with the file's name.

    A preprocessor_config.json beside it is read too, where there is one.
    """
    config = _json(folder / CONFIG)
    images = {}
    if (folder / PREPROCESSOR).is_file():
        images = _json(folder / PREPROCESSOR)
    try:
        return parse(config, images)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def is_own(folder: pathlib.Path) -> bool:
    """Whether a folder's config.json is of a model that this package saved."""
    try:
        return OURS in _json(folder / CONFIG)
    except InputError:
        return False


def parse(config: Mapping[str, Any], images: Mapping[str, Any]) -> HubConfig:
    """As `read`, of the contents of config.json and of preprocessor_config.json."""
    try:
        if OURS in config:
            return _own(config)
        if "architecture" in config:
            return _timm(config)
        return _transformers(config, images)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{CONFIG} has no {error.args[0]}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{CONFIG} has a field of another type: {error}") from error


def _json(path):
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is a {type(found).__name__}; allowed is an object")
    return found


def _own(config):
    """What `save` wrote: all that the model is made of stands in a part of its own."""
    own = config[OURS]
    given = {k: _plain(v) for k, v in own["model"].items()}
    return HubConfig(
        given=given,
        told={"num_classes": config["num_classes"]},
        preprocessing=own["preprocessing"],
        reduction={k: _plain(v) for k, v in own["reduction"].items()},
        dtype=own["dtype"],
        class_names=_timm_labels(config, config["num_classes"]),
    )


def _plain(value):
    return tuple(_plain(v) for v in value) if isinstance(value, list) else value


# timm


def _timm(config):
    """timm's form; what was written before timm 0.9 is flat."""
    images = config.get("pretrained_cfg", config)
    name, tag = config["architecture"], images.get("tag")
    tagged = f"{name}.{tag}"
    known = tagged if tag and public.model(tagged) else name
    if name not in registry.MODELS and public.model(name) is None:
        meant = closest(str(name), [*public.table(), *registry.MODELS])
        hint = f"did you mean {meant}?" if meant else "allowed are timm's ViTs"
        raise InputError(f"{CONFIG}: architecture is {name!r}; {hint}")
    _, *size = images["input_size"]
    given = {"mean": images["mean"], "std": images["std"]}
    given |= {"image_size": size[0] if size[0] == size[1] else tuple(size)}
    classes = config.get("num_classes", images.get("num_classes"))
    told = {} if classes is None else {"num_classes": classes}
    if images.get("fixed_input_size", True):
        told["image_size"] = given["image_size"]
    return HubConfig(
        given={k: _plain(v) for k, v in given.items()} | _arguments(config, known),
        told=told,
        preprocessing=_timm_images(images),
        class_names=_timm_labels(images | config, classes)
        or imagenet_classes.names_of(known, classes),
    )


def _arguments(config, name):
    """What the name and model_args say that no tensor tells."""
    arguments = config.get("model_args") or {}
    facts = registry.facts(name)
    changes = {}
    for field, value in arguments.items():
        if field == "num_heads":
            changes[field] = value
        elif field == "act_layer":
            changes["gelu"] = _choice(f"model_args.{field}", value, TIMM_GELUS)
        elif field == "norm_layer":
            names = {"layernorm": 1e-6, "layer_norm": 1e-6}  # timm's LayerNorm's own
            changes["norm_eps"] = _choice(f"model_args.{field}", value, names)
        elif field == "in_chans":
            _choice(f"model_args.{field}", value, {3: 3})
        elif field not in (*TOLD, *IDLE):
            raise InputError(
                f"{CONFIG}: model_args has {field}={value!r}, which no model here has"
            )
    if not {*arguments} & {*TOLD} - {"img_size", "num_classes"}:
        return {"name": name} | changes
    # Its parts are others than the name's, and the tensors tell them.
    arch = registry.architecture({"name": name})
    own = {"gelu": arch.gelu, "norm_eps": arch.norm_eps, "resize": arch.resize}
    return own | {"num_heads": facts["num_heads"]} | changes


def _timm_images(images):
    found = {"crop": images.get("crop_pct"), "crop_mode": images.get("crop_mode")}
    found["interpolation"] = images.get("interpolation")
    return {k: v for k, v in found.items() if v is not None}


def _timm_labels(config, classes):
    """Descriptions of the labels where there are any, else their names."""
    names = config.get("label_names")
    if not names:
        return None
    if isinstance(names, Mapping):  # by number, some of which may lack
        names = [names.get(str(i)) for i in range(classes)]
    described = config.get("label_descriptions") or {}
    return tuple(described.get(name, name) for name in names)


# transformers


@dataclasses.dataclass(frozen=True)
class ModelType:
    """A model type of transformers.

    fields: the defaults of its configuration class; resize: how its code interpolates
    positions; resample: its image processor's own; square: whether a size that is one
    number means both sides there; parts: (fields) -> what tensors tell too.
    """

    fields: Mapping[str, Any]
    resize: str
    resample: int
    square: bool = True
    parts: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda fields: {}


def _hidden(fields):
    return {"mlp_ratio": fields["intermediate_size"] / fields["hidden_size"]}


def _dinov2(fields):
    hidden = int(fields["hidden_size"] * fields["mlp_ratio"])
    if fields["use_swiglu_ffn"]:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return {"mlp_ratio": hidden / fields["hidden_size"]}


_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)
_BASE |= dict(image_size=224, patch_size=16, num_channels=3)
_WIDE = _BASE | dict(intermediate_size=3072)
_VIT = _WIDE | dict(hidden_act="gelu", layer_norm_eps=1e-12)
_DINOV2 = _BASE | dict(hidden_act="gelu", layer_norm_eps=1e-6)
_DINOV2 |= dict(mlp_ratio=4, use_swiglu_ffn=False)
_CLIP = _WIDE | dict(patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5)
_SIGLIP = _WIDE | dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
# How an image processor resizes where its file does not say: 2 bilinear, 3 bicubic.
MODEL_TYPES = {
    "vit": ModelType(_VIT, "bicubic", 2, parts=_hidden),
    "deit": ModelType(_VIT, "bicubic", 3, parts=_hidden),
    "dinov2": ModelType(
        _DINOV2 | {"patch_size": 14}, "bicubic", 3, square=False, parts=_dinov2
    ),
    "dinov2_with_registers": ModelType(
        _DINOV2, "antialias", 3, square=False, parts=_dinov2
    ),
    "clip_vision_model": ModelType(_CLIP, "bicubic", 3, square=False, parts=_hidden),
    "siglip_vision_model": ModelType(_SIGLIP, "bicubic", 3, parts=_hidden),
}
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def _transformers(config, images):
    kind = config["model_type"]
    fields = config
    if kind in TOWERS:
        kind, fields = TOWERS[kind], config.get("vision_config") or {}
    if kind not in MODEL_TYPES:
        listed = ", ".join([*MODEL_TYPES, *TOWERS])
        raise InputError(f"{CONFIG}: model_type is {kind!r}; allowed are {listed}")
    model = MODEL_TYPES[kind]
    fields = model.fields | {k: v for k, v in fields.items() if k in model.fields}
    for field in {*fields} & {*WHOLE}:
        value = fields[field]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{CONFIG}: {field} is {value!r}; allowed are 1, 2, 3, ..")
    _choice("num_channels", fields["num_channels"], {3: 3})
    size, patch = _square(fields["image_size"]), _square(fields["patch_size"])
    classify = any("ImageClass" in name for name in config.get("architectures") or ())
    labels = config.get("id2label") if classify else None
    given = {
        "num_heads": fields["num_attention_heads"],
        "gelu": _choice("hidden_act", fields["hidden_act"], GELUS),
        "norm_eps": float(fields["layer_norm_eps"]),
        "resize": model.resize,
        "image_size": size,
    }
    told = {"embed_dim": fields["hidden_size"], "depth": fields["num_hidden_layers"]}
    told |= {"patch_size": patch, "image_size": size} | model.parts(fields)
    told |= {"num_classes": len(labels)} if labels else {}
    found, prepared = _processor(images, model)
    return HubConfig(
        given=given | found,
        told=told,
        preprocessing=prepared,
        class_names=_names(labels),
    )


def _names(labels):
    """id2label as names by number; None where they are transformers' placeholders."""
    if not labels:
        return None
    names = [labels.get(str(i)) for i in range(len(labels))]
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        return None
    return tuple(names)


def _processor(images, model):
    """(mean and std, fields of a Preprocessing) of a preprocessor_config.json."""
    if not images:
        return {}, {}
    if images.get("do_rescale", True):
        factor = images.get("rescale_factor", RESCALE)
        if abs(factor - RESCALE) > 1e-6:
            raise InputError(
                f"{PREPROCESSOR}: rescale_factor is {factor!r}; allowed is 1/255"
            )
    else:
        raise InputError(f"{PREPROCESSOR}: do_rescale is False; allowed is True")
    fields = {"mean": "image_mean", "std": "image_std"}
    given = {k: tuple(images[name]) for k, name in fields.items() if name in images}
    if not images.get("do_normalize", True):
        given = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if not images.get("do_resize", True) or "size" not in images:
        return given, {}
    resample = images.get("resample", model.resample)
    interpolation = _choice("resample", resample, RESAMPLE, PREPROCESSOR)
    side, squash = _resized(images["size"], model)
    cut = images.get("crop_size")
    cropped = images.get("do_center_crop", cut is not None)
    known = cut is not None if cropped else squash
    crop = _share(_square(cut), side) if known and cropped else 1.0
    if not known or crop > 1:
        raise InputError(
            f"{PREPROCESSOR}: size is {images['size']!r} and crop_size {cut!r}; "
            "allowed are a height and a width, or a crop_size of at most size"
        )
    mode = "squash" if squash else "center"
    return given, {"crop": crop, "crop_mode": mode, "interpolation": interpolation}


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
        raise InputError(f"a size is {tuple(size)!r}; allowed are squares")
    return height


def _choice(field, value, known, file=CONFIG):
    if value not in known:
        listed = ", ".join(map(str, known))
        raise InputError(f"{file}: {field} is {value!r}; allowed are {listed}")
    return known[value]
