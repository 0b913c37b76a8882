"""A model and its weights as a program that needs only JAX, and facts about it."""

import datetime
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import read_json, reading
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.inference.program_outputs import ProgramOutputs
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem_type import activation
from imagepiece_jax.models.vit import ViT

PLATFORMS = ("cpu", "cuda")
IMAGES = "images"  # the name of a program's input
LARGEST = 2**31  # the most bytes of a file in flatbuffers, JAX's format
HALF = "bfloat16"


def serialized(
    vit: Pretrained,
    *,
    batch_size: int | None = None,
    pixels: bool = False,
    **outputs: Any,
) -> bytes:
    """A model as a file of `jax.export`: a program from images to logits.

    vit: a model with XLA's attention and plain reductions, which run on all platforms
    batch_size: number of images in a call; None: any
    pixels: whether images are uint8, which the program normalizes; else float32
    outputs: arguments of `ProgramOutputs`; several arrays are returned as a tuple
    Raises InputError for any batch size with a model that draws random numbers, and for
        weights that are too large for one file.
    """
    with extras.needed("a program"):
        from flatbuffers.builder import BuilderSizeError  # JAX writes files with it

    wanted = ProgramOutputs(vit, **outputs)
    images = exported_images(vit, batch_size, pixels, wanted.tokens)
    dtype = wanted.model.dtype.name
    if _weight_bytes(wanted.model, vit.variables, dtype) > LARGEST:
        raise _too_large(wanted.model, vit.variables)
    fast, fixed = optimize.prepare(wanted.model, vit.variables, dtype=dtype)
    forward = wanted.forward(fast)

    @jax.jit
    def program(images):
        # A plain tuple, because readers of the file do not have this package.
        results = tuple(forward(fixed, images))
        if len(results) == 1:
            return results[0]
        return results

    exported = jax.export.export(program, platforms=PLATFORMS)(images)
    try:
        return exported.serialize()
    except BuilderSizeError as error:  # weights fit, but not the program beside them
        raise _too_large(wanted.model, vit.variables) from error


def _weight_bytes(model, variables, dtype):
    """The bytes that the weights have in a file, with layers of a dtype."""

    def weights(variables):
        return optimize.prepare(model, variables, dtype=dtype)[1]

    leaves = jax.tree.leaves(jax.eval_shape(weights, variables))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _too_large(model, variables):
    """The InputError for weights that are too large for a file."""
    dtype = model.dtype.name
    needed = _weight_bytes(model, variables, dtype)
    half = _weight_bytes(model, variables, HALF)
    hint = "export it as ONNX"
    if half < LARGEST and half < needed:
        hint += f" or in {HALF} ({half / 1e9:.2f} GB)"
    problem = f"has weights of {needed / 1e9:.2f} GB in {dtype}"
    allowed = f"up to {LARGEST / 1e9:.2f} GB with the program, what a file of JAX holds"
    return InputError.at("the model", problem, allowed, hint, needed)


def load_program(path: str | os.PathLike) -> jax.export.Exported:
    """The program in a file: `jax.jit(load_program(path).call)(images)`.

    Raises InputError for a file that is damaged or something else, and for one that JAX
        refuses: it promises to read only files of its versions of the last six months.
    """
    with reading(path):
        content = bytearray(pathlib.Path(path).read_bytes())
    try:
        program = jax.export.deserialize(content)
        program.mlir_module()  # JAX checks its version only here
    except MemoryError:
        raise
    except Exception as error:  # of many types, where bytes are missing
        reason = f"({str(error).split('.')[0]})"
        version = jax.__version__
        facts = read_facts(path)
        if {"jax", "exported"} <= {*facts}:
            reason += f"; jax {facts['jax']} exported it on {facts['exported']}"
        raise InputError.at(
            path,
            f"is no program that jax {version} reads {reason}",
            "complete files of this jax, or of one at most six months older",
            "export the weights again, for longer as ONNX",
        ) from error
    return program


def origin() -> dict[str, Any]:
    """The version and date of an export, which decide how long JAX can read it."""
    return {
        "jax": jax.__version__,
        "calling_convention": jax.config.jax_export_calling_convention_version,
        "exported": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def facts_file(out: str | os.PathLike) -> pathlib.Path:
    """The path of the JSON file with facts about the program in file `out`."""
    return pathlib.Path(f"{out}.json")


def read_facts(out: str | os.PathLike) -> dict[str, Any]:
    """The facts about the program in file `out`; {} where they cannot be read."""
    try:
        return read_json(facts_file(out))
    except InputError:
        return {}


def exported_images(
    vit: Pretrained,
    batch_size: int | None = None,
    pixels: bool = False,
    tokens: int | None = None,
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an exported program's images.

    vit, batch_size, pixels: as for `serialized`
    tokens: of `ProgramOutputs`
    Raises InputError for any batch size with a model that draws random numbers, and for
        tokens that the model cannot end with.
    """
    if batch_size is None:
        if draws(vit.model_with_tokens(tokens)):
            # JAX cannot draw random numbers of an unknown shape.
            problem = f"is open, but {vit.label} draws random numbers"
            raise InputError("batch_size", None, "a number", problem=problem)
        (batch_size,) = jax.export.symbolic_shape("batch")
    shape = (batch_size, *sides(vit.image_size), 3)
    dtype = "uint8" if pixels else "float32"
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def draws(model: ViT) -> bool:
    """Whether a step of the reduction draws random numbers in evaluation."""
    for layer in model.plan:
        if layer.counts and layer.step.reducer.draws(layer.counts, train=False):
            return True
    return False


FACTS = {"input", "output", "preprocessing"}  # among those of each program


def program_facts(
    vit: Pretrained,
    images: jax.ShapeDtypeStruct,
    outputs: ProgramOutputs | None = None,
    stored: Callable[[np.dtype], np.dtype] = np.dtype,
) -> dict[str, Any]:
    """Facts about an exported program as JSON values: its input, output and model.

    images: a result of `exported_images`
    outputs: what the program returns; None: logits
    stored: function from a dtype of JAX to that in the file
    """
    outputs = outputs or ProgramOutputs(vit)
    model = outputs.model
    arrays = jax.eval_shape(outputs.forward(model), vit.variables, images)

    def entry(name, array):
        shape = [side if isinstance(side, int) else str(side) for side in array.shape]
        return {"name": name, "shape": shape, "dtype": stored(array.dtype).name}

    output = [*map(entry, outputs.names, arrays)]
    if len(output) == 1:
        output = output[0]
    if images.dtype == jnp.uint8:
        normalization = {"pixels": "0 to 255, normalized by the model"}
    else:
        normalization = {
            "pixels": "0 to 1, of which the input is (pixels - mean) / std",
            "mean": model.mean,
            "std": model.std,
        }
    prepared = vit.preprocessing.as_json
    if vit.preprocessing.resizes:
        prepared["resized"] = list(vit.preprocessing.resized)
    classes_out = model.num_classes if "logits" in outputs.names else 0
    fields = None  # of a model that someone made by hand
    method = None
    if vit.spec is not None:
        fields = vit.spec.as_dict
    if vit.reduction is not None:
        method = vit.reduction.fields
    return {
        "input": entry(IMAGES, images),
        "normalization": normalization,
        "output": output,
        **outputs.as_json,
        "classes": model.num_classes,
        "class_names": vit.class_names,
        "problem_type": vit.problem_type if model.num_classes else None,
        "activation": activation(vit.problem_type, classes_out),
        "preprocessing": prepared,
        "model": fields,
        "method": method,
        "recovered": vit.recovered and vit.recovered.form,
        "dtype": model.dtype.name,
        "gmacs": model_macs(model, vit.image_size) / 1e9,
    }
