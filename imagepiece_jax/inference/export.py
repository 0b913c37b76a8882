"""A trained model as one file: a program for JAX, or a graph for ONNX.

The file is not run: that graphs compute the model's logits is what tests/inference
compares, in onnxruntime and OpenVINO.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp

from imagepiece_jax.common import extras, xla_options
from imagepiece_jax.common.files import (
    check_is_path,
    check_writable,
    replace_file,
    write_json,
)
from imagepiece_jax.common.progress import working
from imagepiece_jax.common.signals import finishing
from imagepiece_jax.errors import InputError, one_of, short_traceback
from imagepiece_jax.inference import jax_export, onnx_model
from imagepiece_jax.inference.onnx_graph import stored_dtype
from imagepiece_jax.inference.optimize import CompileOptions, check_gelu
from imagepiece_jax.inference.program_outputs import DEFAULTS, ProgramOutputs
from imagepiece_jax.models.pretrained import Pretrained, check_pretrained
from imagepiece_jax.weights.file_names import ENDINGS
from imagepiece_jax.weights.runs import own_files

WRITERS = {"jax": "flatbuffers", "onnx": "onnx"}  # which write a format


@short_traceback
def export(
    vit: Pretrained,
    out: str | os.PathLike,
    *,
    format: str | None = None,
    batch_size: int | None = None,
    dtype: str | None = None,
    gelu: str | None = None,
    pixels: bool = False,
    output: str = "logits",
    layers: int | Sequence[int] = DEFAULTS["layers"],
    norm: bool = DEFAULTS["norm"],
    fill: str = DEFAULTS["fill"],
    tokens: int | None = None,
) -> pathlib.Path:
    """Write a model with its weights to one file, which runs without this package.

    FILE.json beside it says how to prepare images, and what the outputs are. Weights of
    an ONNX file that are more than 2 GB are in a second file, which FILE.json names.

    out: the file, new or of an earlier export, which is replaced: ONNX where its name
        ends in .onnx, else a program of `jax.export`, for CPUs and NVIDIA GPUs
    format: "jax" or "onnx"; None: by the name of the file, which ends in .onnx, in .jax
        or in nothing
    batch_size: number of images in a call; None: any
    dtype: of the layers of a program for JAX; None: the model's. ONNX has float32
    gelu: form of GELU, as `optimize` takes it; None: the model's
    pixels: whether images are uint8, which the program normalizes; else float32
    output: "logits" (pooled vectors of a model without classes), "features" (what
        `features` returns) or "patches" (only a feature for every patch)
    layers, norm, fill: of features, as `features` takes them
    tokens: exact number of image tokens, which are returned as a `TokenList` in place
        of logits, or after features
    Returns the path of the file.
    Raises InputError for anything that does not fit, before anything is written.
    """
    if isinstance(out, Pretrained):  # the order that `save` has
        vit, out = out, vit
    check_pretrained(vit)
    read = None
    if vit.source is not None:
        read = vit.source.path
    out, format = checked_file(out, format, read)
    typed = {"dtype": dtype, "pixels": pixels, "batch_size": batch_size, "gelu": gelu}
    if batch_size is None:  # the program takes any
        typed["batch_size"] = 1
    checked = CompileOptions(**typed)
    if batch_size is not None:
        batch_size = checked.batch_size
    dtype = checked.dtype
    if format == "onnx" and dtype not in (None, "float32"):
        raise InputError("dtype", dtype, "'float32' with format='onnx'")
    if format == "onnx":
        dtype = "float32"
    check_gelu(vit.model, gelu)
    vit = _portable(vit, dtype or vit.model.dtype.name, gelu or vit.model.arch.gelu)
    options = {"output": output, "layers": layers, "norm": norm}
    options |= {"fill": fill, "tokens": tokens}
    outputs = ProgramOutputs(vit, **options)
    if format == "onnx":  # before a sentence that asks for a batch size
        onnx_model.check_has_graph(vit, outputs.model)
    images = jax_export.exported_images(vit, batch_size, pixels, tokens)
    options |= {"batch_size": batch_size, "pixels": pixels}
    with working(f"exporting the model as {format}"):
        if format == "onnx":
            program = onnx_model.onnx_model(vit, **options)
            facts = jax_export.program_facts(vit, images, outputs, stored_dtype)
            facts["opset"] = onnx_model.OPSET
        else:
            program = jax_export.serialized(vit, **options)
            facts = jax_export.program_facts(vit, images, outputs)
            facts.update(platforms=jax_export.PLATFORMS, **jax_export.origin())
    earlier_weights = jax_export.read_facts(out).get("external_data")
    weights_file = None
    with finishing():  # the files belong together
        if format == "onnx":
            weights_file = onnx_model.write_onnx(out, program)
        else:
            replace_file(out, program)
        if weights_file is not None:
            facts["external_data"] = weights_file.name
        write_json(jax_export.facts_file(out), facts)
        onnx_model.remove_weights(out, earlier_weights, weights_file)
    return out


def checked_file(
    out: str | os.PathLike,
    format: str | None = None,
    read: str | os.PathLike | None = None,
) -> tuple[pathlib.Path, str]:
    """(the path of a file to export to, its format).

    out, format: as `export` takes them
    read: where the weights are, which must stay
    Raises InputError where the file cannot be written, or its name says another format.
    """
    check_is_path("out", out)
    out = pathlib.Path(os.path.expanduser(out))
    ending = out.suffix.lower()
    if ending in ENDINGS and not out.exists():
        problem = f"{out} ends in {ending}, as weights do, and a program is written"
        allowed = "names such as model.onnx and model.jax"
        hint = "save writes weights, in a folder"
        raise InputError("out", str(out), allowed, problem=problem, hint=hint)
    named = "onnx" if ending == ".onnx" else "jax"
    names_format = format is not None or ending in ("", ".jax", ".onnx")
    if format is None:
        format = named
    one_of("format", format, WRITERS)
    if ending in (".jax", ".onnx") and format != named:
        problem = f"{out} ends in {ending}, but format is {format}"
        allowed = f"format {named}, or another name"
        raise InputError("out", str(out), allowed, problem=problem)
    kept = ()
    if read is not None:
        kept = own_files(read)
    facts = jax_export.facts_file(out)
    for file in (out, facts):  # whose endings are any: `facts` knows what they are
        check_writable("out", str(file), None, kept)
        if file.exists() and not jax_export.FACTS <= {*jax_export.read_facts(out)}:
            problem = f"{file} already exists, and export did not write it"
            raise InputError("out", str(file), problem=problem, hint="choose another")
    if not names_format:  # m.onx would be no graph for ONNX
        problem = f"{out} ends in {ending}, which names no format"
        allowed = "names that end in .onnx, in .jax or in nothing, or format=.."
        raise InputError("out", str(out), allowed, problem=problem)
    extras.check(f"format {format}", WRITERS[format])
    return out, format


def _portable(vit, dtype, gelu):
    """The model with XLA's attention, which runs everywhere, and this form of GELU."""
    xla_options.check_dtype(dtype, "cpu")
    spec = vit.spec
    if spec is not None:
        arch = {**spec.arch, "gelu": gelu}
        spec = dataclasses.replace(spec, attention="xla", dtype=dtype, arch=arch)
    arch = dataclasses.replace(vit.model.arch, gelu=gelu)
    model = vit.model.clone(backend="xla", dtype=jnp.dtype(dtype), arch=arch)
    return dataclasses.replace(vit, model=model, spec=spec)
