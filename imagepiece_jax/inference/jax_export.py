"""A model with its weights as a program that JAX alone runs, and facts about it."""

import jax

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.pretrained.trained_model import Pretrained

PLATFORMS = ("cpu", "cuda")


def serialized(
    vit: Pretrained, *, batch_size: int | None = None, pixels: bool = False
) -> bytes:
    """The bytes of `jax.export` of images [batch, H, W, 3] float32 -> logits.

    batch_size: None leaves it open; pixels: images are uint8. Layers are of the model's
    dtype. The model must have XLA's attention and plain reductions, which both
    platforms have.
    """
    images, dtype = optimize.exported_images(vit, batch_size, pixels), vit.model.dtype
    fast, fixed = optimize.prepare(vit.model, vit.variables, dtype=dtype.name)
    logits = optimize.forward(fast)
    program = jax.jit(lambda images: logits(fixed, images))
    return jax.export.export(program, platforms=PLATFORMS)(images).serialize()


def output_name(model: ViT) -> str:
    """What a program gives: "logits", or of a model without classes "pooled"."""
    return "logits" if model.num_classes else "pooled"


def facts(vit, config, batch_size=None, pixels=False):
    """Input, output and model of the program, as JSON values."""
    model, count = vit.model, batch_size or "batch"
    normalization = {"pixels": "0 to 1", "mean": model.mean, "std": model.std}
    if pixels:
        normalization = {"pixels": "0 to 255, normalized by the model"}
    return {
        "input": {
            "shape": [count, *sides(vit.image_size), 3],
            "dtype": "uint8" if pixels else "float32",
        },
        "normalization": normalization,
        "output": {
            "name": output_name(model),
            "shape": [count, model.num_classes or model.embed_dim],
            "dtype": "float32",
        },
        "labels": model.num_classes,
        "class_names": vit.class_names,
        "model": config.model.to_dict(),
        "method": config.reduction.to_dict(),
        "dtype": model.dtype.name,
        "gmacs": vit.gmacs,
    }
