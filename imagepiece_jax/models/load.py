"""Trained models by one path: the public `load`."""

import os
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import pretrained, registry, summary
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import settings


def load(
    path: str | os.PathLike,
    *,
    checkpoint: str = "best",
    averaged: bool = False,
    num_classes: int | None = None,
    seed: int = 0,
    **fields: Any,
) -> tuple[ViT, Mapping[str, Any]]:
    """(model, variables) of trained weights, wherever they are.

    path: of a weights file (.npz, .safetensors, .pth), whose tensors determine sizes,
    stem and classes; of a folder with config.json and weights, as timm, transformers
    and `save` write it; of the folder of a run, with its "best" or "latest"
    `checkpoint`; or an id of the Hugging Face hub, "hf://OWNER/NAME" or
    "hf://OWNER/NAME@REVISION", whose files are fetched once into huggingface_hub's
    cache.

    averaged: the averages of the weights over the steps of the training, which a run
    has (config.ema_decay), and a .pth file that timm or DeiT's code saved while
    training; InputError for others.

    fields: those of create_model that are to differ or that the weights leave open,
    such as reduction={"name": "evit", "keep_rate": 0.7}; None keeps that of a run, or
    of a folder that `save` wrote, and {"name": "none"} is the dense model. Another
    image_size resizes the position embeddings. What no tensor tells (heads, the kind of
    GELU, the epsilon of norms, mean and std) comes from the config, or from a name: the
    file's own, or name="vit_small_patch16_224.augreg_in1k".

    num_classes: another number than the weights' own gives a new head, drawn from
    `seed` as one that training starts with; 0 leaves the head out. The model has the
    `class_names` of the weights, where they are known, unless others, of the same
    classes, are given to be shown. InputError for what does not fit, and for a field
    that contradicts the weights.
    """
    found = pretrained.read(path, fields, checkpoint, averaged)
    reduction, more = settings.split(found.reduction)
    own = found.fields["num_classes"]
    num_classes = own if num_classes is None else num_classes
    same = num_classes == own
    known = {"reduction": reduction, "class_names": found.class_names if same else None}
    other = fields.get("reduction") is not None
    known |= {} if other else more
    if isinstance(fields.get("reduction"), Mapping):
        _, inside = settings.split(fields["reduction"])
        fields = inside | {k: v for k, v in fields.items() if v is not None}
    # A name is not needed in a folder, and stands for another model than its own.
    renamed = fields.get("name") != found.fields.get("name")
    sized = found.path.is_dir() and renamed
    fields = known | found.changed(fields, sized=sized) | {"num_classes": num_classes}
    try:
        model = registry.create_model(**fields)
    except InputError as error:
        if found.config is not None:
            raise
        raise InputError(f"{found.kind} {found.path}: {error}") from error
    if other and found.untrained(fields["reduction"]):
        raise InputError(
            f"{found.kind} {found.path} has no selectors of the method "
            f"{model.reduction['name']!r}, which learns them; allowed are methods that "
            "do not, or weights trained with it (train.py --config.init.weights)"
        )
    image_size = fields["image_size"]
    heads = None if same else _new_heads(model, image_size, seed)
    return model, found.restore(model, image_size, heads, other)


def _new_heads(model, image_size, seed):
    """Parameters of the heads of `model`, by name; {} where it has none."""
    known = summary.shapes(model, image_size)["params"]
    parts = [head for head in pretrained.HEADS if head in known]
    return summary.fresh(model, image_size, seed, parts)["params"] if parts else {}
