"""Model configs by name: ours in MODELS, timm's public models in public_models.json.

tools/public_models.py writes the JSON.
"""

import functools
import json
import os
import pathlib
import re
from typing import Any

from imagepiece_jax.common.checks import find_similar_name
from imagepiece_jax.data import class_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig

IMAGENET_NORMALIZATION: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
DEIT_FIELDS = IMAGENET_NORMALIZATION | {"patch_size": 16, "depth": 12}
DEIT_FIELDS["preprocessing"] = Preprocessing(224, crop=0.9)  # crop of DeiT's authors
MINI_FIELDS = DEIT_FIELDS | {"patch_size": 2, "depth": 6}
MINI_FIELDS["preprocessing"] = Preprocessing(16)
MODELS = {
    "deit_ti": ViTConfig(name="deit_ti", embed_dim=192, num_heads=3, **DEIT_FIELDS),
    "deit_s": ViTConfig(name="deit_s", embed_dim=384, num_heads=6, **DEIT_FIELDS),
    "deit_b": ViTConfig(name="deit_b", embed_dim=768, num_heads=12, **DEIT_FIELDS),
    "vit_mini": ViTConfig(name="vit_mini", embed_dim=64, num_heads=4, **MINI_FIELDS),
}
PUBLIC_MODEL_TABLE = pathlib.Path(__file__).with_name("public_models.json")
# {pattern of the authors' file name, without suffix: timm's model name}, from the
# addresses in timm 1.0.31
ORIGINAL_FILE_PATTERNS = {
    r"(deit_\w+)-[0-9a-f]{8}": r"\1.fb_in1k",
    r"deit_3_huge_224_1k": "deit3_huge_patch14_224.fb_in1k",
    r"deit_3_huge_224_21k_v1": "deit3_huge_patch14_224.fb_in22k_ft_in1k",
    r"deit_3_([a-z]+)_(\d+)_1k": r"deit3_\1_patch16_\2.fb_in1k",
    r"deit_3_([a-z]+)_(\d+)_21k": r"deit3_\1_patch16_\2.fb_in22k_ft_in1k",
    r"dino_deitsmall(8|16)_pretrain": r"vit_small_patch\1_224.dino",
    r"dino_vitbase(8|16)_pretrain": r"vit_base_patch\1_224.dino",
    r"dinov2_vits14(_reg4|)_pretrain": r"vit_small_patch14\1_dinov2.lvd142m",
    r"dinov2_vitb14(_reg4|)_pretrain": r"vit_base_patch14\1_dinov2.lvd142m",
    r"dinov2_vitl14(_reg4|)_pretrain": r"vit_large_patch14\1_dinov2.lvd142m",
    r"dinov2_vitg14(_reg4|)_pretrain": r"vit_giant_patch14\1_dinov2.lvd142m",
    r"mae_pretrain_vit_(base|large)": r"vit_\1_patch16_224.mae",
    r"mae_pretrain_vit_huge": "vit_huge_patch14_224.mae",
}
KNOWN_MODELS_TEXT = f"the models are {', '.join(MODELS)} and timm's plain ViTs"
# size fields in a row of the JSON and in a run's config.model
SIZE_FIELDS = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
# All weights behind a name without a tag must agree in these fields.
AGREED_FIELDS = ("preprocessing", "mean", "std", "gelu", "resize")


@functools.cache
def model_config(name: str) -> ViTConfig:
    """Look up a model's config by name.

    name: one of MODELS, or timm's name with its tag, "vit_small_patch16_224.dino". The
        tag may be left out if all tags agree in normalization, crop, GELU and position
        resizing. num_classes is then from timm's default tag.
    Raises InputError for any other name.
    """
    if name in MODELS:
        return MODELS[name]
    fields_by_tag = _find_weights(name)
    if not fields_by_tag:
        raise InputError(f"{name!r} is not a model name; {suggest_names(name)}")
    agreed_values = []
    for tag_fields in fields_by_tag.values():
        agreed_values.append([*map(tag_fields.get, AGREED_FIELDS)])
    if any(values != agreed_values[0] for values in agreed_values):
        tags = ", ".join(f"{name}.{tag}" for tag in fields_by_tag)
        raise InputError(f"{name!r} is several different models; name one: {tags}")
    fields = dict(next(iter(fields_by_tag.values())))  # a copy, of the default tag
    fields["preprocessing"] = Preprocessing(**fields["preprocessing"])
    # The JSON lists these with a tag's fields, but they are fields of an Architecture.
    parts = {part: fields.pop(part) for part in ("gelu", "resize") if part in fields}
    if "." not in name:  # no tag
        fields.pop("prop_attn", None)  # only some of the weights have it
    config = build_config(name.partition(".")[0], name=name, **fields)
    return config.with_arch(**parts)


def build_config(architecture: str, **config_fields: Any) -> ViTConfig:
    """Make the config of a timm architecture with further ViTConfig fields."""
    if architecture not in public_models():
        raise InputError(f"architecture is {architecture!r}; {KNOWN_MODELS_TEXT}")
    row = public_models()[architecture]
    fields: dict[str, Any] = {"name": architecture, **config_fields}
    fields |= {field: row[field] for field in SIZE_FIELDS if field in row}
    return ViTConfig(arch=Architecture(**row["arch"]), **fields)


def is_known(name: str | None) -> bool:
    """Whether a model has this name, with or without a tag."""
    return name in MODELS or bool(_find_weights(name))


def suggest_names(name: str) -> str:
    """Suggest known names for an unknown name: its architecture's tags, if known."""
    architecture = name.partition(".")[0]
    if tags := _find_weights(architecture):
        tagged_names = [f"{architecture}.{tag}" for tag in tags]
        return f"with a tag it is one of {', '.join(tagged_names)}"
    if similar_name := find_similar_name(architecture, [*MODELS, *public_models()]):
        return f"did you mean {similar_name!r}?"
    return KNOWN_MODELS_TEXT


def _find_weights(name):
    """Find public weights by timm's `name`: {tag: config fields}; {} if unknown.

    A name without a tag stands for all its weights, timm's default tag first.
    """
    architecture, dot, tag = (name or "").partition(".")
    fields_by_tag = public_models().get(architecture, {"weights": {}})["weights"]
    if not dot:
        return fields_by_tag
    return {tag: fields_by_tag[tag]} if tag in fields_by_tag else {}


@functools.cache
def public_models() -> dict[str, dict[str, Any]]:
    """Read the table {architecture: row}.

    A row has sizes, "arch", timm's "class", and the "arguments" timm's code passes to
    the class. "weights" is {tag: config fields}, timm's default tag first.
    "former_names" is {name before timm 0.9: tag}.
    """
    return json.loads(PUBLIC_MODEL_TABLE.read_text("utf-8"))


def timm_class(name: str | None) -> str | None:
    """timm's class for an architecture; None for any other name."""
    return public_models().get(name or "", {}).get("class")


@functools.cache
def timm_arguments(name: str) -> dict[str, Any]:
    """All constructor arguments in timm for an architecture, as JSON values."""
    class_table = PUBLIC_MODEL_TABLE.with_name("timm_classes.json")
    defaults_by_class = json.loads(class_table.read_text("utf-8"))
    # An unknown name gets the defaults of Eva.
    row = public_models().get(name, {"class": "Eva", "arguments": {}})
    return defaults_by_class[row["class"]] | row["arguments"]


def translate_former_name(name: str) -> tuple[str, str]:
    """Translate a former architecture name to timm's present (name, tag or "")."""
    for present_name, row in public_models().items():
        if name in row.get("former_names", {}):
            return present_name, row["former_names"][name]
    return name, ""


def published_class_names(name: str | None, num_classes: int) -> tuple[str, ...] | None:
    """ImageNet's class names, if weights with this name and 1,000 classes have them."""
    # Tags that end in "in1k" were trained on ImageNet-1k last, for example
    # "augreg_in21k_ft_in1k". A name without a tag stands for all its weights. MODELS
    # have no published weights.
    tags = [*_find_weights(name)]
    has_names = num_classes == 1000 and any(tag.endswith("in1k") for tag in tags)
    return class_names.imagenet_names() if has_names else None


def model_in_file_name(path: str | os.PathLike) -> str | None:
    """The known model in a weights file's name, or None."""
    file_name = pathlib.Path(path).name.removesuffix(".tar")  # timm writes .pth.tar
    model_name = pathlib.Path(file_name).stem  # or an authors' file name
    for pattern, name_template in ORIGINAL_FILE_PATTERNS.items():
        if match := re.fullmatch(pattern, model_name):
            model_name = match.expand(name_template)
    return model_name if is_known(model_name) else None
