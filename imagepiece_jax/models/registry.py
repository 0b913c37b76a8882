"""Fields of models by name, of which `spec.create_model` builds them.

Our own are MODELS, and timm's are written by tools/public_models.py.
"""

import functools
import json
import os
import pathlib
import re
from typing import Any

from imagepiece_jax.common.checks import as_tuple
from imagepiece_jax.data import class_names
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.vit import MEAN, STD

SIZE = dict(patch_size=16, depth=12, mlp_ratio=4.0, mean=MEAN, std=STD)
MODELS = {
    "deit_ti": SIZE | dict(embed_dim=192, num_heads=3),
    "deit_s": SIZE | dict(embed_dim=384, num_heads=6),
    "deit_b": SIZE | dict(embed_dim=768, num_heads=12),
    "vit_mini": SIZE | dict(patch_size=2, embed_dim=64, depth=6, num_heads=4),
}
# {our name: timm's of the weights that DeiT's authors published for it}
PUBLISHED = {
    "deit_ti": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
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


def fields_of(name):
    """Fields of a ModelSpec by name, {} for None; InputError for an unknown one."""
    if name is None:
        return {}
    fields = None
    if isinstance(name, str):
        fields = MODELS.get(name) or public_fields(name)
    if fields is None:
        raise InputError(f"name is {name!r}; {NAMES}")
    return fields


def is_known(name) -> bool:
    """Whether it is the name of a model."""
    if not isinstance(name, str):
        return False
    return name in MODELS or public_fields(name) is not None


def public_fields(name: str) -> dict[str, Any] | None:
    """Fields of a ModelSpec by timm's `name`; None: it is unknown.

    A name with a tag, "vit_small_patch16_224.dino", has all fields of its weights. One
    without has only those of image_size, num_classes, mean and std on which all weights
    of the architecture agree; gelu and resize are timm's defaults unless all agree.

    Some weights state prop_attn for every method (MAE without fine-tuning, Bolya et al.
    2023).
    """
    fields = _public_fields(name)
    return None if fields is None else dict(fields)


@functools.cache
def _public_fields(name):
    """`public_fields`, cached, of which callers get a copy."""
    weights = [*_weights(name).values()]
    if not weights:
        return None
    base, dot, _ = name.partition(".")
    row = public_models()[base]
    sizes = {k: v for k, v in row.items() if k not in ("arch", "weights")}
    fields = {"mlp_ratio": 4.0} | sizes

    def agreed(*names):
        """The fields of these names that have one value in all weights."""
        found = {}
        for field in names:
            values = {as_tuple(images.get(field)) for images in weights}
            if len(values) == 1 and None not in values:
                found[field] = values.pop()
        return found

    fields |= agreed("image_size", "num_classes", "mean", "std")
    if dot and "prop_attn" in weights[0]:
        fields["prop_attn"] = weights[0]["prop_attn"]
    arch = row["arch"] | agreed("gelu", "resize")
    return fields | {"arch": Architecture(**arch)}


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

    The first tag is the one that timm takes for the name of the architecture.
    """
    return json.loads(TABLE.read_text("utf-8"))


def published_crop(name: str | None) -> dict[str, Any]:
    """crop, crop_mode and interpolation of weights by name; {} for other names.

    An architecture has those of timm's own choice among its weights (`chosen_tag`), and
    our names of DeiT's models have those of the weights that its authors published.
    """
    return next(iter(_crops(name).values()), {})


def chosen_tag(name: str | None) -> str | None:
    """The tag whose crop an architecture gets; None where all its weights have one."""
    crops = _crops(name)
    first = published_crop(name)
    if all(crop == first for crop in crops.values()):
        return None
    return next(iter(crops))


def _crops(name):
    """{tag: fields of a Preprocessing} of the public weights that a name stands for."""
    found = {}
    for tag, images in _weights(PUBLISHED.get(name, name)).items():
        found[tag] = {"crop_mode": "center"}
        for field in ("crop", "crop_mode", "interpolation"):
            if field in images:
                found[tag][field] = images[field]
    return found


def published_class_names(name: str | None, classes: int) -> tuple[str, ...] | None:
    """ImageNet's class names for weights of this name with its 1,000 classes, or None.

    timm's tags say so: those of "vit_small_patch16_224.augreg_in21k_ft_in1k" were
    trained on ImageNet-1k last. An architecture stands for all of its weights.
    """
    named = classes == 1000 and any(tag.endswith("in1k") for tag in _weights(name))
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
