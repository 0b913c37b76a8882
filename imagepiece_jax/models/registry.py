"""The configs of models by name: our own, and timm's of public models.

Those of timm are written by tools/public_models.py.
"""

import difflib
import functools
import json
import os
import pathlib
import re
from typing import Any

from imagepiece_jax.data import class_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import MEAN, STD, ViTConfig

DEIT = dict(patch_size=16, depth=12, mean=MEAN, std=STD)
DEIT["preprocessing"] = Preprocessing(224, crop=0.9)  # by DeiT's authors
MODELS = {
    "deit_ti": ViTConfig(name="deit_ti", embed_dim=192, num_heads=3, **DEIT),
    "deit_s": ViTConfig(name="deit_s", embed_dim=384, num_heads=6, **DEIT),
    "deit_b": ViTConfig(name="deit_b", embed_dim=768, num_heads=12, **DEIT),
    "vit_mini": ViTConfig(
        name="vit_mini",
        patch_size=2,
        embed_dim=64,
        depth=6,
        num_heads=4,
        preprocessing=Preprocessing(16),
        mean=MEAN,
        std=STD,
    ),
}
TABLE = pathlib.Path(__file__).with_name("public_models.json")
# {name of an authors' own file, without ending: timm's name of the model}, by the
# addresses in timm 1.0.31
ORIGINALS = {
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
NAMES = f"the models are {', '.join(MODELS)} and timm's plain ViTs"


SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")  # of a row
# Facts of published weights of which a name without a tag must say one value.
AGREED = ("mean", "std", "gelu", "resize")


@functools.cache
def config(name: str) -> ViTConfig:
    """The config of a model by name.

    name: one of MODELS; timm's of a public model with its tag, such as
        "vit_small_patch16_224.dino"; or without one, where all of the architecture's
        weights have one normalization, one crop and one GELU. Its number of classes is
        then that of timm's own choice
    Raises InputError for any other name.
    """
    if name in MODELS:
        return MODELS[name]
    weights = _weights(name)
    if not weights:
        raise InputError(f"{name!r} is no model's name; {names_for(name)}")
    images = next(iter(weights.values()))
    if any(_agreed(other) != _agreed(images) for other in weights.values()):
        tags = ", ".join(f"{name}.{tag}" for tag in weights)
        raise InputError(
            f"{name!r} stands for weights that differ in normalization, crop or GELU; "
            f"a tag says which: {tags}"
        )
    facts = images | {"preprocessing": Preprocessing(**images["preprocessing"])}
    parts = {part: facts.pop(part) for part in ("gelu", "resize") if part in facts}
    if "." not in name:
        facts.pop("prop_attn", None)  # of some of the weights
    return made_of(name, **facts).with_arch(**parts)


def made_of(name: str, **facts: Any) -> ViTConfig:
    """The config of timm's architecture, with further fields of a ViTConfig."""
    row = public_models()[name.partition(".")[0]]
    sizes = {field: row[field] for field in SIZES if field in row}
    return ViTConfig(name=name, arch=Architecture(**row["arch"]), **sizes, **facts)


def _agreed(images):
    """The facts of published weights that those of one name must share."""
    crop = images["preprocessing"] | {"image_size": None}
    return crop, [images.get(field) for field in AGREED]


def is_known(name: str | None) -> bool:
    """Whether it is the name of a model, with or without a tag."""
    return name in MODELS or bool(_weights(name))


def names_for(name: str) -> str:
    """Known names in place of one that is not; of an architecture with its tags."""
    base = name.partition(".")[0]
    tags = public_models().get(base, {"weights": {}})["weights"]
    if tags:
        return f"with a tag it is one of {', '.join(f'{base}.{tag}' for tag in tags)}"
    known = [*MODELS, *public_models()]
    for similar in difflib.get_close_matches(base, known, 1, cutoff=0.8):
        return f"did you mean {similar!r}?"
    return NAMES


def _weights(name):
    """{tag: images} of the public weights that timm's `name` stands for; else {}.

    An architecture stands for all of its weights, of which timm's own choice is first.
    """
    base, dot, tag = (name or "").partition(".")
    weights = public_models().get(base, {"weights": {}})["weights"]
    if not dot:
        return weights
    return {tag: weights[tag]} if tag in weights else {}


@functools.cache
def public_models() -> dict[str, dict[str, Any]]:
    """{architecture: its size, "arch" and {tag: images} of its "weights"}.

    The first tag is the one that timm takes for the name of the architecture. "class"
    is timm's, and "arguments" are those that timm's code gives it. "former_names" are
    {name before timm 0.9: tag}.
    """
    return json.loads(TABLE.read_text("utf-8"))


def timm_class(name: str | None) -> str | None:
    """The name of timm's class of an architecture; None for any other name."""
    return public_models().get(name, {}).get("class")


@functools.cache
def timm_arguments(name: str) -> dict[str, Any]:
    """All arguments that timm gives its class for an architecture, as JSON has them."""
    classes = json.loads(TABLE.with_name("timm_classes.json").read_text("utf-8"))
    row = public_models().get(name, {"class": "Eva", "arguments": {}})
    return classes[row["class"]] | row["arguments"]


def present_name(name: str) -> tuple[str, str]:
    """(name, tag or "") that timm has today for an architecture's name."""
    for present, row in public_models().items():
        if name in row.get("former_names", {}):
            return present, row["former_names"][name]
    return name, ""


def published_class_names(name: str | None, classes: int) -> tuple[str, ...] | None:
    """ImageNet's class names for weights of this name with its 1,000 classes, or None.

    timm's tags say so: those of "vit_small_patch16_224.augreg_in21k_ft_in1k" were
    trained on ImageNet-1k last. An architecture stands for all of its weights, and
    MODELS for none.
    """
    tags = _weights(name)
    named = classes == 1000 and any(tag.endswith("in1k") for tag in tags)
    return class_names.imagenet_names() if named else None


def name_of_file(path: str | os.PathLike) -> str | None:
    """The known model with the name of a weights file, or None."""
    file = pathlib.Path(path).name.removesuffix(".tar")  # timm writes .pth.tar
    name = timm_name(pathlib.Path(file).stem)
    return name if is_known(name) else None


def timm_name(file: str) -> str:
    """timm's name of the model in an authors' own file; any other name unchanged."""
    for pattern, name in ORIGINALS.items():
        if match := re.fullmatch(pattern, file):
            return match.expand(name)
    return file
