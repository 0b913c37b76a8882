"""A model with its weights as a program that JAX alone runs, and facts about it."""

from collections.abc import Mapping
from typing import Any

import jax

from imagepiece_jax.inference import optimize
from imagepiece_jax.models import summary
from imagepiece_jax.models.vit import ViT

PLATFORMS = ("cpu", "cuda")


def serialized(
    model: ViT,
    variables: Mapping[str, Any],
    image_size,
    *,
    batch_size: int | None = None,
    pixels: bool = False,
) -> bytes:
    """The bytes of `jax.export` of images [batch, H, W, 3] float32 -> logits.

    image_size: pixels a side, or (height, width). batch_size: None leaves it open;
    pixels: images are uint8. Layers are of the model's dtype. `model` must have XLA's
    attention and plain reductions, which both platforms have.
    """
    images = optimize.exported_images(model, image_size, batch_size, pixels)
    fast, fixed = optimize.prepare(model, variables, dtype=model.dtype.name)
    logits = optimize.forward(fast)
    program = jax.jit(lambda images: logits(fixed, images))
    return jax.export.export(program, platforms=PLATFORMS)(images).serialize()


def output_name(model: ViT) -> str:
    """What a program gives: "logits", or of a model without classes "pooled"."""
    return "logits" if model.num_classes else "pooled"


def facts(model, config, batch_size=None, pixels=False):
    """Input, output and model of the program, as JSON values."""
    side, count = config.image_size, batch_size or "batch"
    normalization = {"pixels": "0 to 1", "mean": model.mean, "std": model.std}
    if pixels:
        normalization = {"pixels": "0 to 255, normalized by the model"}
    return {
        "input": {
            "shape": [count, side, side, 3],
            "dtype": "uint8" if pixels else "float32",
        },
        "normalization": normalization,
        "output": {
            "name": output_name(model),
            "shape": [count, model.num_classes or model.embed_dim],
            "dtype": "float32",
        },
        "labels": model.num_classes,
        "class_names": model.class_names,
        "model": config.model.to_dict(),
        "method": config.reduction.to_dict(),
        "dtype": model.dtype.name,
        "gmacs": summary.model_macs(model, side) / 1e9,
    }
