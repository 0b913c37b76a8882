"""Public models by timm's names: what they are made of and the images they are for.

The table is public_models.json, which tools/public_models.py writes from timm. A name
is that of an architecture, or of weights: "vit_small_patch16_224.augreg_in1k".
"""

import functools
import json
import pathlib
from typing import Any

from imagepiece_jax.models.architecture import Architecture

TABLE = pathlib.Path(__file__).with_name("public_models.json")


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """{architecture: its size, "arch" and {tag: images} of its "weights"}."""
    return json.loads(TABLE.read_text("utf-8"))


def tagged() -> list[str]:
    """The names of all weights."""
    return [f"{name}.{tag}" for name, row in table().items() for tag in row["weights"]]


def names() -> list[str]:
    """All names, of architectures and of weights."""
    return [*table(), *tagged()]


def model(name: str) -> dict[str, Any] | None:
    """Fields of registry.create_model that `name` stands for; None: it is unknown.

    An architecture without tag has no mean and std, unless all its weights agree.
    prop_attn: of weights that are used without proportional attention by every method
    (MAE without fine-tuning, Bolya et al. 2023).
    """
    base, dot, tag = name.partition(".")
    row = table().get(base)
    if row is None or (dot and tag not in row["weights"]):
        return None
    found = {k: v for k, v in row.items() if k not in ("arch", "weights")}
    weights = [row["weights"][tag]] if dot else [*row["weights"].values()]
    for field in ("image_size", "num_classes", "mean", "std"):
        values = [
            tuple(w[field]) if field in ("mean", "std") else w[field] for w in weights
        ]
        if len(set(values)) == 1:
            found[field] = values[0]
    if dot and "prop_attn" in weights[0]:
        found["prop_attn"] = weights[0]["prop_attn"]
    arch = row["arch"] | {
        k: w[k] for w in weights if dot for k in ("gelu", "resize") if k in w
    }
    return found | {"arch": Architecture.of(arch)}


def preprocessing(name: str) -> dict[str, Any]:
    """crop (share of the side), crop_mode and interpolation of the weights `name`."""
    base, _, tag = name.partition(".")
    images = table()[base]["weights"][tag]
    return {"crop_mode": "center"} | {
        k: images[k] for k in ("crop", "crop_mode", "interpolation") if k in images
    }
