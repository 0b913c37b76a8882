"""A model with its weights as a program that JAX alone runs, and facts about it."""

from typing import Any

import jax
import jax.numpy as jnp

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.pretrained.trained_model import Pretrained

PLATFORMS = ("cpu", "cuda")


def serialized(
    vit: Pretrained, *, batch_size: int | None = None, pixels: bool = False
) -> bytes:
    """The program of images -> logits, [batch, classes] float32, by `jax.export`.

    vit: with XLA's attention and plain reductions, which both platforms have; layers
    are of the model's dtype
    batch_size: None leaves it open
    pixels: images are uint8, and are normalized by the program; else float32
    Raises InputError where the batch is open and the model draws.
    """
    images, dtype = exported_images(vit, batch_size, pixels), vit.model.dtype
    fast, fixed = optimize.prepare(vit.model, vit.variables, dtype=dtype.name)
    logits = optimize.forward(fast)
    program = jax.jit(lambda images: logits(fixed, images))
    return jax.export.export(program, platforms=PLATFORMS)(images).serialize()


def exported_images(
    vit: Pretrained, batch_size: int | None = None, pixels: bool = False
) -> jax.ShapeDtypeStruct:
    """The images of an exported program, with arguments and errors of `serialized`."""
    if batch_size is None:
        if draws(vit.model):
            # JAX has no random numbers of an open shape.
            raise InputError(
                f"config.reduction is {vit.label}, which draws random numbers; allowed "
                "is a batch size, --batch"
            )
        (batch_size,) = jax.export.symbolic_shape("batch")
    shape = batch_size, *sides(vit.image_size), 3
    return jax.ShapeDtypeStruct(shape, jnp.dtype("uint8" if pixels else "float32"))


def draws(model: ViT) -> bool:
    """Whether a step of the reduction draws random numbers, out of training too."""
    return any(
        layer.counts and layer.step.reducer.draws(layer.counts, train=False)
        for layer in model.plan
    )


def output_name(model: ViT) -> str:
    """What a program gives: "logits", or of a model without classes "pooled"."""
    return "logits" if model.num_classes else "pooled"


def facts(
    vit: Pretrained, config, batch_size: int | None = None, pixels: bool = False
) -> dict[str, Any]:
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
