"""A model with its weights as a program that needs only JAX, and facts about it."""

import contextlib
import datetime
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.image_size import patch_grid, sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem import activation
from imagepiece_jax.models.vit import ViT

PLATFORMS = ("cpu", "cuda")
IMAGES = "images"  # the name of a program's input


def serialized(
    vit: Pretrained,
    *,
    batch_size: int | None = None,
    pixels: bool = False,
    tokens: int | None = None,
) -> bytes:
    """The program of images -> logits, [batch, classes] float32, by `jax.export`.

    vit: with XLA's attention and plain reductions, which both platforms have; layers
        have the model's dtype
    batch_size: None: open
    pixels: images are uint8, and the program normalizes them; else float32
    tokens: number of image tokens in place of logits, the arrays of a `TokenList`
    Raises InputError where the batch is open and the model draws.
    """
    images = exported_images(vit, batch_size, pixels, tokens)
    model, dtype = vit.model_with_tokens(tokens), vit.model.dtype
    fast, fixed = optimize.prepare(model, vit.variables, dtype=dtype.name)
    forward = optimize.forward(fast, tokens is not None)

    @jax.jit
    def program(images):
        results = forward(fixed, images)
        # A plain tuple: whoever reads the file has no class of this package.
        return results if tokens is None else tuple(results)

    return jax.export.export(program, platforms=PLATFORMS)(images).serialize()


def load_program(path: str | os.PathLike) -> jax.export.Exported:
    """The program in a file: `jax.jit(load_program(path).call)(images)`.

    Raises InputError where the file is no such program or damaged, or JAX refuses it:
    it promises to read files of its versions from the last six months, no newer ones.
    """
    try:
        program = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
        program.mlir_module()  # whose own version JAX looks at no earlier
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", place=path) from error
    except MemoryError:
        raise
    except Exception as error:  # of many types, where bytes are missing
        reason, version = f"({str(error).split('.')[0]})", jax.__version__
        with contextlib.suppress(InputError, KeyError):
            facts = read_json(facts_file(path))
            reason += f"; jax {facts['jax']} exported it on {facts['exported']}"
        allowed = "complete files of this jax, or of one at most six months older"
        raise InputError(
            f"is no program that jax {version} reads {reason}",
            place=path,
            allowed=allowed,
            hint="export the weights again, for longer with --format onnx",
        ) from error
    return program


def origin() -> dict[str, Any]:
    """Versions and date of an export, which decide how long JAX reads the program."""
    return {
        "jax": jax.__version__,
        "calling_convention": jax.config.jax_export_calling_convention_version,
        "exported": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def facts_file(out: str | os.PathLike) -> pathlib.Path:
    """Path of the facts about the program in file `out`."""
    return pathlib.Path(f"{out}.json")


def exported_images(
    vit: Pretrained,
    batch_size: int | None = None,
    pixels: bool = False,
    tokens: int | None = None,
) -> jax.ShapeDtypeStruct:
    """The images of an exported program, with arguments and errors of `serialized`."""
    if batch_size is None:
        if draws(vit.model_with_tokens(tokens)):
            # JAX has no random numbers of an open shape.
            problem = f"is open, but {vit.label} draws random numbers"
            raise InputError(problem, field="batch_size", allowed="a number, --batch")
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
    """The name of a program's output; a model without classes gives "pooled"."""
    return "logits" if model.num_classes else "pooled"


def facts(
    vit: Pretrained, config, images: jax.ShapeDtypeStruct, tokens: int | None = None
) -> dict[str, Any]:
    """Input, output and model of the program, as JSON values.

    images: from `exported_images`
    tokens: as `serialized` takes them; `output` is a list if there are some
    """
    model, count = vit.model_with_tokens(tokens), images.shape[0]
    count = count if isinstance(count, int) else str(count)  # "batch", which is open

    def array(name, *shape, dtype="float32"):
        return {"name": name, "shape": [count, *shape], "dtype": dtype}

    output = array(output_name(model), model.num_classes or model.embed_dim)
    if tokens is not None:
        grid = patch_grid(vit.image_size, model.patch_size, cut=True)
        output = [
            array("tokens", tokens, model.embed_dim),
            array("size", tokens),
            array("source", *grid, dtype="int32"),
            array("coordinates", tokens, 2),
        ]
    normalization = {"pixels": "0 to 1, of which the input is (pixels - mean) / std"}
    normalization |= {"mean": model.mean, "std": model.std}
    if images.dtype == jnp.uint8:
        normalization = {"pixels": "0 to 255, normalized by the model"}
    return {
        "input": array(IMAGES, *images.shape[1:], dtype=images.dtype.name),
        "normalization": normalization,
        "output": output,
        "classes": model.num_classes,
        "class_names": vit.class_names,
        "problem_type": vit.problem_type if model.num_classes else None,
        "activation": activation(vit.problem_type, model.num_classes),
        "preprocessing": vit.preprocessing.facts,
        "model": config.model.to_dict(),
        "method": config.reduction.to_dict(),
        "dtype": model.dtype.name,
        "gmacs": model_macs(model, vit.image_size) / 1e9,
    }
